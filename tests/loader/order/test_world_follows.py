"""A detected world is that of the process group from when on there is one; a world given by hand stays.

Most tests take the place of one rank alone, in a group whose other ranks need not run: torch's "fake" backend.
"""

import json
import logging
import subprocess
import sys

import pytest
from torch import distributed
from torch.testing._internal.distributed import fake_pg  # noqa: F401 - the backend "fake"
from torch.utils.data import DataLoader

import epistream as es
from epistream.errors import OptionError

# Nobody says which rank is on which node, so each counts as one.
RANK_1_OF_2 = es.World(1, 2, 0, 1, 1, 2, uneven=True)
RANK_2_OF_4 = es.World(2, 4, 0, 1, 2, 4, uneven=True)
NUM_WINDOWS = 140
OPTIONS = {"batch_size": 8, "features": ["action"], "seed": 3}
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "SLURM_STEP_ID", "OMPI_COMM_WORLD_SIZE")


@pytest.fixture
def group(monkeypatch):
    """Makes this process a rank of a process group, of a later one if called again."""
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)

    def end():
        if distributed.is_initialized():
            distributed.destroy_process_group()

    def begin(rank, size):
        end()
        distributed.init_process_group("fake", store=distributed.HashStore(), rank=rank, world_size=size)

    begin.end = end
    yield begin
    end()


@pytest.fixture
def paths(aloha_files):
    return [str(path) for path in aloha_files]


def stream_of(shards, world=None, **options):
    return es.EpisodeStream(shards, world=world, **{**OPTIONS, **options})


def windows_of(batches):
    return [list(zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)) for b in batches]


def mixture_of(shards, world=None, own=None):
    streams = [stream_of(shards, own), stream_of(shards, own, repetitions=[0, 1])]
    return es.Mixture(streams, [2, 1], batch_size=8, stop="all_exhausted", world=world)


def loader_of(stream, **options):
    return es.StreamingLoader(stream, **{"num_workers": 0, "num_threads": 1, **options})


def config_of(shards):
    return es.load_config(source=str(shards), num_workers=0, num_threads=1, batch_size=8, features="action", seed=3)


def stock(stream, num_workers=0, method=None):
    return DataLoader(stream, batch_size=None, num_workers=num_workers, multiprocessing_context=method)


# What is made before the group, by name; of the world given, or of the one that it finds.
MADE = {
    "stream": stream_of,
    "loader without workers": lambda shards, world=None: loader_of(stream_of(shards, world), num_threads=0),
    "loader of threads": lambda shards, world=None: loader_of(stream_of(shards, world)),
    "loader of forked processes": lambda shards, world=None: loader_of(
        stream_of(shards, world), num_workers=1, num_threads=None
    ),
    "stock loader": lambda shards, world=None: stock(stream_of(shards, world)),
    "stock loader of forked workers": lambda shards, world=None: stock(stream_of(shards, world), 2, "fork"),
    "stock loader of spawned workers": lambda shards, world=None: stock(stream_of(shards, world), 1, "spawn"),
    "mixture": mixture_of,
    "mixture of streams with a world": lambda shards, world=None: mixture_of(shards, own=world),
    "loader of a mixture": lambda shards, world=None: loader_of(mixture_of(shards, world)),
    "stream of a configuration": lambda shards, world=None: config_of(shards).stream(world=world),
    "loader of a configuration": lambda shards, world=None: config_of(shards).loader(world=world),
    "from_config of the stream": lambda shards, world=None: es.EpisodeStream.from_config(
        config_of(shards), world=world
    ),
    "from_config of the loader": lambda shards, world=None: es.StreamingLoader.from_config(
        config_of(shards), None, world
    ),
}


@pytest.mark.parametrize("name", MADE)
def test_detected_world_follows_the_group_that_is_set_up_later(aloha_shards, group, name):
    made = MADE[name](aloha_shards)
    expected = windows_of(MADE[name](aloha_shards, RANK_1_OF_2))
    assert 2 <= len(expected) <= NUM_WINDOWS // 16 + 8
    group(1, 2)
    assert windows_of(made) == expected


@pytest.mark.parametrize("name", [name for name in MADE if "spawned" not in name and "forked" not in name])
def test_made_where_ranks_are_to_come_is_refused_until_the_group_is_there(aloha_shards, group, monkeypatch, name):
    monkeypatch.setenv("WORLD_SIZE", "2")  # as Lightning's launcher does; the rank it tells torch.distributed alone
    made = MADE[name](aloha_shards)
    with pytest.raises(OptionError, match="WORLD_SIZE=2, but no RANK"):
        next(iter(made))
    group(1, 2)
    assert windows_of(made) == windows_of(MADE[name](aloha_shards, RANK_1_OF_2))


@pytest.mark.parametrize("name", ["loader of threads", "stock loader of forked workers", "mixture"])
def test_world_given_by_hand_stays_whatever_group_there_is(aloha_shards, group, name):
    made = MADE[name](aloha_shards, RANK_2_OF_4)
    expected = windows_of(MADE[name](aloha_shards, RANK_2_OF_4))
    group(1, 2)
    assert windows_of(made) == expected


def test_world_of_one_given_by_hand_reads_all_windows_under_a_group(aloha_shards, group):
    stream = stream_of(aloha_shards, es.World())
    group(1, 2)
    assert stream.num_batches == NUM_WINDOWS // 8
    assert len({window for batch in windows_of(loader_of(stream)) for window in batch}) == NUM_WINDOWS // 8 * 8


def test_detected_world_follows_each_group_and_stays_after_the_last(aloha_shards, group):
    with loader_of(stream_of(aloha_shards)) as loader:
        assert (len(loader), loader.num_batches) == (17, 17)
        epoch_0 = windows_of(loader)
        group(1, 2)
        assert (len(loader), loader.num_batches) == (8, 8)
        epoch_1 = windows_of(loader)
        group(2, 4)
        assert len(loader) == 4
        epoch_2 = windows_of(loader)
        group.end()
        assert len(loader) == 4
        epoch_3 = windows_of(loader)
    for epoch, (world, found) in enumerate(
        zip((es.World(), RANK_1_OF_2, RANK_2_OF_4, RANK_2_OF_4), (epoch_0, epoch_1, epoch_2, epoch_3), strict=True)
    ):
        stream = stream_of(aloha_shards, world)
        stream.set_epoch(epoch)
        assert found == windows_of(stream)


def test_iteration_that_is_under_way_ends_in_the_world_that_it_began_in(aloha_shards, group):
    with loader_of(stream_of(aloha_shards)) as loader:
        batches = iter(loader)
        first = windows_of([next(batches)])
        group(1, 2)
        assert first + windows_of(batches) == windows_of(stream_of(aloha_shards, es.World()))
        assert loader.state_dict()["epoch"] == 1
        stream = stream_of(aloha_shards, RANK_1_OF_2)
        stream.set_epoch(1)
        assert windows_of(loader) == windows_of(stream)


@pytest.mark.parametrize("workers", [{}, {"num_workers": 1, "num_threads": None}])
def test_iterator_made_before_the_group_is_of_the_groups_world(aloha_shards, group, workers):
    with loader_of(stream_of(aloha_shards), **workers) as loader:
        batches = iter(loader)  # workers begin to fill
        group(1, 2)
        assert windows_of(batches) == windows_of(stream_of(aloha_shards, RANK_1_OF_2))


def test_state_of_one_world_goes_on_in_another(aloha_shards, group):
    with loader_of(stream_of(aloha_shards)) as loader:
        batches = iter(loader)
        given = [window for _ in range(4) for batch in windows_of([next(batches)]) for window in batch]
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == (0, 32)
    rest = []
    for rank in range(2):
        stream = stream_of(aloha_shards)
        group(rank, 2)
        stream.load_state_dict(state)
        assert stream.num_batches == (NUM_WINDOWS - 32) // 16
        rest += [window for batch in windows_of(stream) for window in batch]
        group.end()
    assert len(set(given + rest)) == len(given + rest) == 32 + (NUM_WINDOWS - 32) // 16 * 16


def test_state_loaded_before_the_group_counts_under_it(aloha_shards, group):
    reference = stream_of(aloha_shards, RANK_1_OF_2)
    expected = windows_of(reference)
    state = {**reference.state_dict(), "epoch": 0, "position": 48}
    with loader_of(stream_of(aloha_shards)) as loader:
        loader.load_state_dict(state)
        group(1, 2)
        assert loader.num_batches == 5
        assert loader.state_dict()["position"] == 48
        assert windows_of(loader) == expected[3:]


def test_state_is_the_same_in_every_world(aloha_shards, group):
    stream = stream_of(aloha_shards)
    before = stream.state_dict()
    group(1, 2)
    assert stream.state_dict() == before


def test_batch_that_the_new_world_has_no_windows_for_is_refused_at_the_first_use(aloha_shards, group):
    stream = stream_of(aloha_shards, batch_size=100)
    loader = loader_of(stream)
    group(1, 2)
    message = r"batch_size: 100 x 2 ranks = 200 windows a batch, .*140"
    with pytest.raises(OptionError, match=message):
        stream.num_batches  # noqa: B018
    with pytest.raises(OptionError, match=message):
        len(loader)
    with pytest.raises(OptionError, match=message):
        next(iter(loader))
    with pytest.raises(OptionError, match=message):
        next(iter(stream))
    group.end()
    loader.close()


def test_reading_single_windows_does_not_ask_for_the_world(aloha_shards, group):
    stream = stream_of(aloha_shards)
    before = stream.read(1, 5)
    place = stream.locate(7)
    group(1, 2)
    assert (stream.read(1, 5)["action"] == before["action"]).all()
    assert stream.locate(7) == place
    assert stream.num_windows == NUM_WINDOWS


def test_title_of_the_report_and_lines_of_the_monitor_name_the_groups_rank(aloha_shards, group, caplog):
    caplog.set_level(logging.INFO, "epistream.loader.monitor")
    with loader_of(stream_of(aloha_shards), monitor=es.MonitorOptions(log_every_s=1e-6)) as loader:
        group(1, 2)
        list(loader)
        assert ": rank 1 of 2, 1 thread" in str(loader.report())
    assert caplog.messages
    assert {message.partition(":")[0] for message in caplog.messages} == {"rank 1"}


def test_order_is_judged_once_more_for_the_groups_world(aloha_shards, group, caplog):
    caplog.set_level(logging.INFO, "epistream.loader.order_log")
    with loader_of(stream_of(aloha_shards)) as loader:
        group(0, 2)
        list(loader)
    assert len(caplog.messages) == 1
    assert "16 windows" in caplog.messages[0]


def places_of(loader):
    return [list(zip(b["episode_id"].tolist(), b["timestamp"].tolist(), strict=True)) for b in loader]


def old_loader(paths, **options):
    loader, _ = es.create_optimized_dataloader(
        paths, ["top"], batch_size=8, num_workers=0, **{"use_distributed": True, "image_size": (32, 24), **options}
    )
    return loader


def test_old_loader_made_before_the_group_deals_each_window_to_one_rank(paths, group):
    seen = []
    for rank in range(2):
        loader = old_loader(paths)
        assert len(loader) == 18
        group(rank, 2)
        assert len(loader) == 9
        loader.sampler.set_epoch(1)
        seen += [place for batch in places_of(loader) for place in batch]
        group.end()
    assert len(seen) == len(set(seen)) == NUM_WINDOWS


def test_old_loader_keeps_epoch_and_options_when_it_follows(paths, group):
    options = {"shuffle": True, "seed": 5, "drop_last": True}
    loader = old_loader(paths, loader_options=options)
    loader.sampler.set_epoch(2)
    group(1, 2)
    found = places_of(loader)
    made_after = old_loader(paths, loader_options=options)
    made_after.sampler.set_epoch(2)
    assert found == places_of(made_after)
    assert (loader.sampler.rank, loader.sampler.num_replicas, loader.sampler.epoch) == (1, 2, 2)


def test_old_loader_where_ranks_are_to_come_is_refused_until_the_group_is_there(paths, group, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    loader = old_loader(paths)
    for use in (len, list):
        with pytest.raises(OptionError, match="WORLD_SIZE=2, but no RANK"):
            use(loader)
    group(1, 2)
    assert len(loader) == len(places_of(loader)) == 9
    assert len(old_loader(paths, use_distributed=False)) == 18


def test_old_loader_that_is_not_distributed_stays_whole(paths, group):
    loader = old_loader(paths, use_distributed=False)
    group(1, 2)
    assert len(loader) == 18
    assert len({place for batch in places_of(loader) for place in batch}) == NUM_WINDOWS


@pytest.mark.parametrize("is_distributed", [True, False])
def test_old_loader_in_a_child_that_nobody_told_its_rank_says_so(paths, group, monkeypatch, caplog, is_distributed):
    monkeypatch.setattr("multiprocessing.parent_process", object)
    loader = old_loader(paths, use_distributed=is_distributed)
    iter(loader.sampler)
    told = [message for message in caplog.messages if "neither a process group nor the environment" in message]
    assert len(told) == is_distributed
    group(1, 2)
    caplog.clear()
    iter(loader.sampler)
    assert caplog.messages == []


# Makes everything before the group, as notebooks do, and writes the windows of one epoch of each.
EVERY_KIND = """
import json, sys
import torch
import epistream as es

def windows(batches, episode="episode_index", step="step_index"):
    return [list(zip(b[episode].tolist(), b[step].tolist())) for b in batches]

def main(rank, shards, files, out):
    make = lambda: es.EpisodeStream(shards, batch_size=8, features=["action"], seed=3)
    kinds = {
        "stream": make(),
        "loader of forked processes": es.StreamingLoader(make(), num_workers=1),
        "loader of a mixture": es.StreamingLoader(
            es.Mixture([make(), make()], [1, 1], batch_size=8), num_workers=0, num_threads=1
        ),
        "stock loader of a worker": torch.utils.data.DataLoader(make(), batch_size=None, num_workers=1),
        "old loader": es.create_optimized_dataloader(
            files, ["top"], 8, num_workers=0, use_distributed=True, image_size=(32, 24)
        )[0],
    }
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/rendezvous", rank=rank, world_size=2)
    found = {}
    for name, made in kinds.items():
        found[name] = windows(made, "episode_id", "timestamp") if name == "old loader" else windows(made)
        if hasattr(made, "close"):
            made.close()
    open(f"{out}/{rank}.json", "w").write(json.dumps(found))
    torch.distributed.destroy_process_group()

if __name__ == "__main__":
    shards, files, out, method = sys.argv[1:]
    torch.multiprocessing.start_processes(main, (shards, json.loads(files), out), nprocs=2, start_method=method)
"""


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_ranks_that_make_all_before_their_gloo_group_share_each_epoch(
    aloha_shards, paths, tmp_path, monkeypatch, method
):
    for name in LAUNCHERS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = tmp_path / "every_kind.py"
    script.write_text(EVERY_KIND)
    command = [sys.executable, script, aloha_shards, json.dumps(paths), tmp_path, method]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=170, check=False)
    assert done.returncode == 0, done.stderr
    assert "neither a process group" not in done.stderr
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for kind in ranks[0]:
        windows = [tuple(window) for rank in ranks for batch in rank[kind] for window in batch]
        if kind == "loader of a mixture":  # the same dataset twice
            assert len(windows) == 256
            assert ranks[0][kind] != ranks[1][kind]
        else:
            assert len(windows) == len(set(windows)) == (NUM_WINDOWS if kind == "old loader" else 128), kind
    for rank, found in enumerate(ranks):
        world = es.World(rank, 2, 0, 1, rank, 2, uneven=True)
        expected = [[list(window) for window in batch] for batch in windows_of(stream_of(aloha_shards, world))]
        for kind in ("stream", "loader of forked processes", "stock loader of a worker"):
            assert found[kind] == expected, kind
