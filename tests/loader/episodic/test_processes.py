"""OptimizedEpisodicDataset in threads, processes, samplers and data loaders."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from episodic_world import CAMERAS, places, places_of
from torch.utils.data import DataLoader, DistributedSampler

from epistream.loader.episodic.dataset import OptimizedEpisodicDataset


def test_threads_share_one_dataset(source):
    dataset = OptimizedEpisodicDataset(source, ["top"], chunk_size=4)
    expected = {index: dataset[index] for index in range(0, 140, 9)}
    with ThreadPoolExecutor(4) as pool:
        for index, sample in zip(expected, pool.map(dataset.__getitem__, expected), strict=True):
            assert torch.equal(sample["image"], expected[index]["image"])
            assert torch.equal(sample["action"], expected[index]["action"])


def _read_in_child(dataset, out):
    out.send(dataset[90]["action"].numpy())
    out.close()


def test_fork_while_another_thread_reads_does_not_deadlock(source):
    dataset = OptimizedEpisodicDataset(source, CAMERAS)
    expected = dataset[90]["action"].numpy()
    here, there = multiprocessing.Pipe(duplex=False)
    with dataset._access._lock:  # as if a read were going on in a thread that the child does not have
        child = multiprocessing.get_context("fork").Process(target=_read_in_child, args=(dataset, there))
        child.start()
        assert here.poll(60)
        np.testing.assert_array_equal(here.recv(), expected)
        child.join(60)
    assert child.exitcode == 0


def test_distributed_sampler_divides_the_windows_and_follows_set_epoch(source):
    dataset = OptimizedEpisodicDataset(source, ["top"], chunk_size=2)
    seen = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, seed=1)
        loader = DataLoader(dataset, batch_size=35, sampler=sampler)
        sampler.set_epoch(0)
        first = [place for batch in loader for place in places_of(batch)]
        sampler.set_epoch(1)
        assert first[:35] != places_of(next(iter(loader)))
        seen += first
    assert sorted(seen) == places()


def test_dataloader_reads_a_batch_in_one_call(source, monkeypatch):
    dataset = OptimizedEpisodicDataset(source, ["top"])
    sizes = []
    read = dataset._access.read
    monkeypatch.setattr(
        dataset._access, "read", lambda episodes, steps: sizes.append(len(steps)) or read(episodes, steps)
    )
    next(iter(DataLoader(dataset, batch_size=10)))
    assert sizes == [10]


def test_reports_and_clearing_the_cache(source, capsys):
    dataset = OptimizedEpisodicDataset(source, ["top"], enable_monitoring=True)
    dataset[0]
    dataset.print_performance_report()
    assert "1 samples" in capsys.readouterr().out
    dataset.clear_cache()
    assert dataset[0]["timestamp"] == 0
