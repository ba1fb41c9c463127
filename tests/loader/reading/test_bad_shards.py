"""A bad shard in week two: an error that names it, or marked repeats in its place."""

import shutil

import h5py
import numpy as np
import pytest

import epistream as es
from epistream.errors import EpistreamError, SourceChangedError

NUM_EPISODES, LENGTH = 8, 400  # an episode of 64 kB, the smallest shard


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Eight episodes without cameras, one shard each."""
    folder = tmp_path_factory.mktemp("source")
    with h5py.File(folder / "demos.hdf5", "w") as file:
        for number in range(NUM_EPISODES):
            steps = np.arange(LENGTH, dtype=np.float64)[:, None] + np.zeros((1, 14))
            file[f"data/demo_{number}/actions"] = steps + 1000 * number
            file[f"data/demo_{number}/obs/robot0_joint_pos"] = steps
    out = tmp_path_factory.mktemp("packed") / "shards"
    es.pack(folder, out, shard_size="64KiB")
    assert len(list(out.glob("*.tar"))) == NUM_EPISODES
    return out


@pytest.fixture
def harmed(shards, tmp_path):
    """A copy of which two shards are made bad after the stream was made."""
    return shutil.copytree(shards, tmp_path / "shards")


def harm(folder):
    (folder / "shard-000002.tar").unlink()
    torn = folder / "shard-000005.tar"
    torn.write_bytes(torn.read_bytes()[:1000])


def stream_of(folder, **options):
    return es.EpisodeStream(folder, batch_size=50, order=es.OrderOptions(lanes=2), **options)


WAYS = [{"num_workers": 0, "num_threads": 0}, {"num_workers": 2}, {"num_workers": 0, "num_threads": 2}]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cache", ["auto", "shm"])
def test_bad_shards_are_replaced_by_marked_repeats_and_listed(harmed, tmp_path, way, cache):
    options = es.CacheOptions(mode=cache, directory=f"/dev/shm/epistream-bad-{tmp_path.name}", attempts=1)
    stream = stream_of(harmed, on_bad="skip", cache=options)
    good = {(e, t) for e in range(NUM_EPISODES) if e not in (2, 5) for t in range(LENGTH)}
    harm(harmed)
    with es.StreamingLoader(stream, **way) as loader:
        for _ in range(2):
            seen, repeats = [], 0
            for batch in loader:
                windows = zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True)
                values = batch["action"][:, 0, 0].tolist()
                flags = batch["is_repeat"].tolist()
                for (episode, step), value, is_repeat in zip(windows, values, flags, strict=True):
                    assert value == 1000 * episode + step  # what stands in the place is a real window
                    repeats += is_repeat
                    if not is_repeat:
                        seen.append((episode, step))
            assert sorted(seen) == sorted(good)
            assert repeats == 2 * LENGTH
        stats = loader.stats()
    assert stats.num_replaced_windows >= 2 * 2 * LENGTH
    assert [url.rsplit("/", 1)[1] for url in sorted(stats.bad_shards)] == ["shard-000002.tar", "shard-000005.tar"]


def test_bad_shards_are_replaced_where_small_batches_share_a_slot(harmed):
    stream = es.EpisodeStream(harmed, batch_size=4, order=es.OrderOptions(lanes=2), on_bad="skip")
    harm(harmed)
    with es.StreamingLoader(stream, num_workers=1) as loader:
        assert loader._crew.slots.batches_per_slot == 32
        flags = [batch["is_repeat"] for batch in loader]
    assert sum(int(flag.sum()) for flag in flags) == 2 * LENGTH
    assert len(flags) == NUM_EPISODES * LENGTH // 4


def test_bad_shard_is_an_error_that_names_it_unless_skipping_was_asked_for(harmed):
    stream = stream_of(harmed)
    harm(harmed)
    with pytest.raises(EpistreamError, match=r"shard-00000[25]\.tar"):
        list(stream)


def test_no_good_shard_left_is_an_error(harmed):
    stream = stream_of(harmed, on_bad="skip")
    for tar in harmed.glob("*.tar"):
        tar.unlink()
    with pytest.raises(EpistreamError, match="no shard of it can be read"):
        list(stream)


def test_unknown_on_bad_is_refused(shards):
    with pytest.raises(EpistreamError, match="on_bad: 'ignore'"):
        stream_of(shards, on_bad="ignore")


def test_shard_with_cameras_that_is_overwritten_while_read_is_said_to_have_changed(aloha_shards, tmp_path):
    """Its frames no longer decode, but that is not what its owner has to know."""
    folder = shutil.copytree(aloha_shards, tmp_path / "shards")
    stream = es.EpisodeStream(folder, batch_size=4, decode="per_read")
    with es.StreamingLoader(stream, num_workers=0, num_threads=0) as loader:
        batches = iter(loader)
        next(batches)
        for path in folder.glob("*.tar"):
            path.write_bytes(bytes(path.stat().st_size))
        with pytest.raises(SourceChangedError, match=r"\.tar: \(device, size, inode, mtime\)"):
            next(batches)
