"""A loader that is pickled or copied, as for ranks that are spawned: another loader, at the same place."""

import copy
import pickle
from multiprocessing import get_context

import pytest

import epistream as es


def windows_of(batches):
    return [list(zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)) for b in batches]


@pytest.fixture
def loader(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    with es.StreamingLoader(stream, num_workers=1, prefetch=3, timeout_s=60) as loader:
        yield loader


@pytest.fixture(params=[copy.deepcopy, lambda loader: pickle.loads(pickle.dumps(loader))], ids=["copied", "pickled"])
def again(request):
    return request.param


def test_loader_that_nobody_used_begins_where_it_would(loader, again):
    loader.set_epoch(1)
    with again(loader) as other:
        assert windows_of(other) == windows_of(loader)
        assert str(other.report()).splitlines()[0] == str(loader.report()).splitlines()[0]


def test_loader_amid_an_epoch_goes_on_there_in_both(loader, again):
    batches = iter(loader)
    for _ in range(4):
        next(batches)
    with again(loader) as other:
        assert other.state_dict() == loader.state_dict()
        other.sampler.set_epoch(0)
        rest = windows_of(other)
        assert len(rest) == 10
        assert windows_of(batches) == rest
        assert windows_of(other) == windows_of(loader)


def _read(loader, results):
    with loader:
        results.put(windows_of(loader))


def test_loader_that_is_handed_to_a_spawned_process_leaves_this_one_where_it_is(loader):
    context = get_context("spawn")
    results = context.Queue()
    child = context.Process(target=_read, args=(loader, results))
    child.start()
    theirs = results.get(timeout=60)
    child.join(60)
    assert child.exitcode == 0
    assert theirs == windows_of(loader)
