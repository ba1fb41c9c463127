"""Decoded episodes and resizing: the same pixels and the same order in every way of running, within the budget."""

import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from PIL import Image

import epistream as es
from epistream.errors import EpistreamError, OptionError

MIB = 1 << 20
# Two episodes of 80 and 60 steps, two cameras of 48x64x3.
SMALL = (48, 64)
SMALL_BYTES = [80 * 2 * 48 * 64 * 3, 60 * 2 * 48 * 64 * 3]
WAYS = {
    "synchronous": {"num_workers": 0, "num_threads": 0},
    "two threads": {"num_workers": 0, "num_threads": 2},
    "three processes": {"num_workers": 3},
    "spawned processes": {"num_workers": 2, "start_method": "spawn"},
}


@pytest.fixture
def folder():
    """A cache directory in memory, where there is one."""
    shm = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="decoded-test-", dir=shm if shm.is_dir() else None))
    yield path / "cache"
    shutil.rmtree(path, ignore_errors=True)


def stream_of(shards, folder=None, budget_bytes=64 * MIB, mode="shm", **options) -> es.EpisodeStream:
    cache = es.CacheOptions(mode=mode, directory=str(folder) if folder else None, budget_bytes=budget_bytes)
    return es.EpisodeStream(
        shards,
        **{"batch_size": 7, "window": es.Window(obs=range(-1, 2), action=[0]), "image_size": SMALL, **options},
        cache=cache,
    )


def assert_equal(batches, expected) -> None:
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key, value in other.items():
            assert batch[key] == value if key == "task" else torch.equal(batch[key], value), key


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pad", ["edge", "zero"])
def test_decoded_once_gives_the_batches_of_per_read(aloha_shards, folder, way, pad):
    # At step 0 this is steps 0, 0, 2: as far apart as three neighbours, and none.
    window = es.Window(obs=[-9, 0, 2], action=[0], pad=pad)
    expected = list(stream_of(aloha_shards, folder, decode="per_read", window=window))
    with es.StreamingLoader(stream_of(aloha_shards, folder, decode="once", window=window), **WAYS[way]) as loader:
        for epoch in range(3):
            loader.set_epoch(0)
            for batch, other in zip(loader, expected, strict=True):
                assert_equal([batch], [other])
            assert epoch or loader.stats().cache.made_fills <= 2
        cache = loader.stats().cache
        assert cache.made_fills == 2  # once per node, whoever did it
        assert cache.made_hits > 0


def test_decoded_frames_are_those_that_the_decoder_gives(aloha_shards, aloha_files, folder):
    stream = stream_of(aloha_shards, folder, decode="once", image_size=None, budget_bytes=300 * MIB, batch_size=14)
    for _ in range(2):
        for batch in stream:
            for row in range(0, 14, 5):
                episode, step = int(batch["episode_index"][row]), int(batch["step_index"][row])
                expected = reference.window(
                    reference.aloha_episode(aloha_files[episode]), step, range(-1, 2), [0], "edge"
                )
                for camera in reference.CAMERAS:
                    key = f"observation.images.{camera}"
                    np.testing.assert_array_equal(batch[key][row].numpy(), expected[key])
    assert stream.job.cache.stats().made_hits > 0


def test_decoded_episodes_never_exceed_the_budget_and_what_does_not_fit_is_decoded(aloha_shards, folder, caplog):
    source_bytes = sum(path.stat().st_size for path in aloha_shards.iterdir() if path.suffix in (".tar", ".index"))
    budget = source_bytes + SMALL_BYTES[0] + 64 * 1024  # the sources and one of the two episodes
    expected = list(stream_of(aloha_shards, folder, decode="per_read"))
    stream = stream_of(aloha_shards, folder, budget, decode="once")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for batch, other in zip(stream, expected, strict=True):
                assert_equal([batch], [other])
                assert sum(path.stat().st_size for path in folder.iterdir()) <= budget
    assert stream.job.cache.stats().made_fills == 1
    assert sum("decode='once'" in record.message for record in caplog.records) == 2  # once for each pass
    assert stream.job.cache.stats().bypasses == 0


@pytest.mark.parametrize(("budget_mib", "fills"), [(64, 2), (3, 0)])
def test_decoded_auto_is_once_exactly_where_everything_fits(aloha_shards, folder, budget_mib, fills):
    stream = stream_of(aloha_shards, folder, budget_mib * MIB)
    assert_equal(list(stream), list(stream_of(aloha_shards, folder, decode="per_read")))
    assert stream.job.cache.stats().made_fills == fills


def test_decoded_per_read_and_a_cache_that_is_off_keep_nothing(aloha_shards, folder):
    stream = stream_of(aloha_shards, folder, decode="per_read")
    list(stream)
    assert stream.job.cache.stats().made_fills == 0
    off = stream_of(aloha_shards, mode="off")
    assert_equal(list(off), list(stream_of(aloha_shards, folder, decode="per_read")))
    assert off.job.cache.stats().made_fills == 0


def test_decoded_order_is_the_same_whatever_decode_says(aloha_shards, folder):
    orders = [
        [batch["step_index"].tolist() for batch in stream_of(aloha_shards, folder, decode=decode, seed=3)]
        for decode in ("auto", "once", "per_read")
    ]
    assert orders[0] == orders[1] == orders[2]


def test_decoded_episodes_of_other_options_are_other_entries(aloha_shards, folder):
    first = stream_of(aloha_shards, folder, decode="once")
    list(first)
    other = stream_of(aloha_shards, folder, decode="once", image_size=(24, 32))
    assert next(iter(other))["observation.images.top"].shape == (7, 3, 24, 32, 3)
    assert_equal(list(other), list(stream_of(aloha_shards, folder, decode="per_read", image_size=(24, 32))))
    assert other.job.cache.stats().made_fills == 2


def test_decoded_torn_frame_is_told_where_it_is_read_as_with_per_read(aloha_shards_copy, folder):
    tar = sorted(aloha_shards_copy.glob("*.tar"))[0]
    stream = stream_of(aloha_shards_copy, folder, mode="auto", batch_size=4, shuffle=False, decode="per_read")
    index = next(iter(_indexes(stream)))
    with tar.open("r+b") as file:
        file.seek(int(index.frame_offset["observation.images.top"][40]))
        file.write(bytes(200))
    messages = []
    for decode in ("per_read", "once"):
        stream = stream_of(aloha_shards_copy, folder, mode="auto", batch_size=4, shuffle=False, decode=decode)
        batches = iter(stream)
        for _ in range(9):  # steps 0-35, with the neighbours up to 36
            next(batches)
        with pytest.raises(EpistreamError) as caught:
            list(batches)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert "step 40" in messages[0]


def _indexes(stream):
    from epistream.loader.reading.shard_entry import shard_entry
    from epistream.sharding.format.index import ShardIndex

    dataset = stream.job.dataset
    for shard in range(len(dataset.shard_url)):
        with stream.job.cache.open(shard_entry(dataset, shard)) as entry:
            yield ShardIndex.parse(bytes(entry.blobs[1].read(0, entry.blobs[1].size)), "index")


def test_decoded_leases_end_while_a_loop_holds_its_batch(aloha_shards, folder):
    import fcntl

    stream = stream_of(aloha_shards, folder, decode="once")
    list(stream)
    batches = iter(stream)
    next(batches)
    entries = list(folder.glob("*.shard"))
    assert len(entries) == 4  # two shards, two episodes
    for path in entries:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("size", [(48, 64), (100, 90), (480, 640), (600, 700)])
def test_image_size_looks_like_filtering_the_whole_frame(aloha_shards, aloha_files, size):
    stream = es.EpisodeStream(aloha_shards, batch_size=4, shuffle=False, image_size=size, decode="per_read")
    batch = next(iter(stream))
    whole = reference.aloha_episode(aloha_files[0])
    for camera in reference.CAMERAS:
        frames = batch[f"observation.images.{camera}"]
        assert frames.shape == (4, 1, *size, 3)
        for step in range(4):
            picture = Image.fromarray(whole[f"observation.images.{camera}"][step])
            expected = np.asarray(picture.resize(size[::-1], Image.Resampling.LANCZOS)).astype(float)
            assert np.mean((frames[step, 0].numpy() - expected) ** 2) < 255**2 / 10**4  # 40 dB


@pytest.mark.parametrize(
    "options", [{"image_size": (0, 5)}, {"image_size": 224}, {"image_size": (1, 2, 3)}, {"decode": "twice"}]
)
def test_frame_options_that_cannot_work_are_refused(aloha_shards, options):
    with pytest.raises(OptionError, match=next(iter(options))):
        es.EpisodeStream(aloha_shards, **options)
