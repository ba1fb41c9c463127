"""Decoded frames and resizing: the same pixels and the same order in every way of running, within the budget."""

import gc
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from PIL import Image

import epistream as es
from epistream.cache.node import NodeCache
from epistream.cache.store.lease import Lease
from epistream.errors import EpistreamError, OptionError
from epistream.loader.frames import decoded_frames, keeping, kept_arrays

MIB = 1 << 20
# Two episodes of 80 and 60 steps, two cameras of 48x64x3.
SMALL = (48, 64)
FRAME_BYTES = 48 * 64 * 3
SMALL_BYTES = [80 * 2 * FRAME_BYTES, 60 * 2 * FRAME_BYTES]
CAMERAS = ["observation.images.angle", "observation.images.top"]
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


@pytest.fixture
def at_once(monkeypatch):
    """Whatever there is room for is kept as soon as it is decoded, however dear that is."""
    monkeypatch.setattr(keeping, "_EXTRA", 1e6)
    monkeypatch.setattr(keeping, "_EXTRA_WANTED", 1e6)
    monkeypatch.setattr(keeping, "_MOST_ALLOWED_S", 1e6)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of three steps: 27 and 20 of them."""
    monkeypatch.setattr(decoded_frames, "_CHUNK_BYTES", (3 * 2 * FRAME_BYTES, 64 * MIB))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pad", ["edge", "zero"])
def test_decoded_once_gives_the_batches_of_per_read(aloha_shards, folder, way, pad, at_once):
    # At step 0 this is steps 0, 0, 2: as far apart as three neighbours, and none.
    window = es.Window(obs=[-9, 0, 2], action=[0], pad=pad)
    expected = list(stream_of(aloha_shards, folder, decode="per_read", window=window))
    with es.StreamingLoader(stream_of(aloha_shards, folder, decode="once", window=window), **WAYS[way]) as loader:
        for _ in range(4):
            loader.set_epoch(0)
            for batch, other in zip(loader, expected, strict=True):
                assert_equal([batch], [other])
        stats = loader.stats()
        assert stats.cache.made_fills == 4  # two chunks a shard, once per node, whoever did it
        assert stats.decoded.num_kept > 0
        assert stats.decoded.num_taken > 0
        assert stats.decoded.room_bytes == stats.decoded.all_bytes == sum(SMALL_BYTES)


def test_decoded_frame_is_decoded_once_and_copied_from_then_on(aloha_shards, folder, at_once):
    stream = stream_of(aloha_shards, folder, decode="once", window=es.Window(obs=[0], action=[0]))
    [plan] = [options.decoded for options in stream.job.reader_options]
    assert plan.chunk_rows == MIB // (2 * FRAME_BYTES)
    counts = []
    for _ in range(3):
        list(stream)
        stats = stream.job.decoded_stats()
        counts.append((stats.num_decoded, stats.num_taken, stats.num_kept))
    # What was decoded before its chunk was there (none is made for the first batch) is decoded once more.
    early = counts[0][0] - counts[0][2]
    assert counts[0][:2] == (280, 0)
    assert 0 < early <= 4 * 7 * 2
    assert counts[1] == (280 + early, 280 - early, 280)
    assert counts[2] == (280 + early, 560 - early, 280)


def test_what_is_read_at_once_is_kept_at_once_if_there_is_time(aloha_shards, folder, at_once, small_chunks):
    stream = stream_of(aloha_shards, folder, decode="once", window=es.Window(obs=[0], action=[0]), batch_size=70)
    list(stream)
    # Nothing of the first of two batches, and all frames of the other, which lie in some forty chunks.
    assert stream.job.decoded_stats().num_kept == 2 * 70


def test_decoded_frames_are_those_that_the_decoder_gives(aloha_shards, aloha_files, folder, at_once):
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
    assert stream.job.decoded_stats().num_taken > 0


def count_openings(monkeypatch):
    """Numbers of tries to make something, of those that failed, and of looks for it."""
    counts = {"tries": 0, "failed": 0, "looks": 0}
    old = NodeCache.open_made

    def open_made(self, entry, size, fill, **how):
        opened = old(self, entry, size, fill, **how)
        counts["looks" if fill is None else "tries"] += 1
        counts["failed"] += fill is not None and opened is None
        return opened

    monkeypatch.setattr(NodeCache, "open_made", open_made)
    return counts


@pytest.mark.alone  # how far workers are ahead of each other decides how much is decoded twice
@pytest.mark.parametrize("percent", [0, 25, 75, 100])
def test_decoded_share_of_the_budget_is_kept_and_never_more(
    aloha_shards, folder, percent, at_once, small_chunks, monkeypatch
):
    expected = list(stream_of(aloha_shards, folder, decode="per_read"))
    counts = count_openings(monkeypatch)
    # Chunks are charged in whole pages.
    budget = 64 * 1024 + int(sum(SMALL_BYTES) * 1.05 * percent / 100)
    stream = stream_of(aloha_shards, folder, budget, "auto", decode="once", features=CAMERAS)
    before = stream.job.decoded_stats()
    for _ in range(6):  # the first makes chunks
        before = stream.job.decoded_stats()
        for batch, other in zip(stream, expected, strict=True):
            for camera in CAMERAS:
                assert torch.equal(batch[camera], other[camera])
            assert sum(path.stat().st_size for path in folder.iterdir()) <= budget
    stats, cache = stream.job.decoded_stats(), stream.job.cache.stats()
    taken, decoded = stats.num_taken - before.num_taken, stats.num_decoded - before.num_decoded
    assert taken / (taken + decoded) * 100 == pytest.approx(percent, abs=8)
    assert (cache.evictions, cache.bypasses) == (0, 0)
    assert cache.made_fills == pytest.approx(47 * percent / 100, abs=3)
    # Each chunk is made or found once an epoch, and after one that failed none is tried for a while; a look for each
    # that is missing.
    assert counts["tries"] <= 6 * 47 + counts["failed"]
    assert counts["failed"] <= 2 * 6
    assert counts["looks"] <= 6 * 47 * (1 if percent == 100 else 4)
    assert bool(stats.why) == (percent < 100)


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_decoded_chunk_is_tried_once_a_batch_whatever_comes_of_it(
    aloha_shards, folder, share, at_once, small_chunks, monkeypatch
):
    stream = stream_of(aloha_shards, folder, mode="auto", decode="once", features=CAMERAS)
    monkeypatch.setattr(kept_arrays, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(kept_arrays, "_LAST_PAUSE_S", 0.0)
    tries = []

    def open_made(self, entry, size, fill, **how):
        tries.append(fill is not None)

    monkeypatch.setattr(NodeCache, "open_made", open_made)
    for number, _ in enumerate(stream):
        assert sum(tries) == number  # none for the first
    assert len(tries) > 2 * sum(tries)


def test_decoded_auto_is_once_exactly_where_everything_fits(aloha_shards, folder, at_once):
    expected = list(stream_of(aloha_shards, folder, decode="per_read"))
    for budget_mib, fits in ((64, True), (3, False)):
        stream = stream_of(aloha_shards, folder, budget_mib * MIB)
        assert_equal(list(stream), expected)
        assert (stream.job.cache.stats().made_fills > 0) == fits
        assert bool(stream.job.decoded_stats().why) != fits


def test_decoded_two_streams_of_a_process_share_what_either_keeps(aloha_shards, folder, at_once):
    first, second = (stream_of(aloha_shards, folder, decode="once", seed=seed) for seed in (1, 2))
    holder = stream_of(aloha_shards, folder).job.cache
    holder.budget()  # the last one out removes the directory
    for _ in range(2):
        for one, other in zip(first, second, strict=True):
            assert one["step_index"].shape == other["step_index"].shape
    made = first.job.cache.stats().made_fills + second.job.cache.stats().made_fills
    assert made == 4
    decoded = first.job.decoded_stats().num_decoded
    assert_equal(list(first), list(stream_of(aloha_shards, folder, decode="per_read", seed=1)))
    assert first.job.decoded_stats().num_decoded == decoded
    holder.close()


def test_decoded_frames_are_kept_by_and_by_where_keeping_is_dear(aloha_shards, folder, small_chunks, monkeypatch):
    expected = list(stream_of(aloha_shards, folder, decode="per_read", batch_size=2))
    monkeypatch.setattr(keeping, "_EXTRA_WANTED", 0.05)
    stream = stream_of(aloha_shards, folder, decode="once", batch_size=2, mode="auto")
    kept, made = [], []
    for _ in range(60):
        assert_equal(list(stream), expected)
        kept.append(stream.job.decoded_stats().num_kept)
        made.append(stream.job.cache.stats().made_fills)
        if kept[-1] == 280:
            break
    assert kept == sorted(kept)
    assert kept[-1] == 280
    assert made[-1] == 49  # 47 chunks, and the tables of two shards


def test_decoded_that_does_not_pay_is_given_up_for_good(aloha_shards, folder, at_once, monkeypatch):
    monkeypatch.setattr(keeping, "_WORTH", 0.0)
    monkeypatch.setattr(keeping, "_JUDGED_AFTER", 1)
    expected = list(stream_of(aloha_shards, folder, decode="per_read"))
    by_default = stream_of(aloha_shards, folder)
    for _ in range(3):
        assert_equal(list(by_default), expected)
    stats = by_default.job.decoded_stats()
    assert stats.num_taken > 0
    assert "to take a kept frame costs" in stats.why
    made = by_default.job.cache.stats()
    assert_equal(list(by_default), expected)
    again = by_default.job.decoded_stats()
    assert (again.num_taken, again.num_kept) == (stats.num_taken, stats.num_kept)
    assert by_default.job.cache.stats().made_hits == made.made_hits
    wished = stream_of(aloha_shards, folder, decode="once")  # what the user asks for is not judged
    for _ in range(2):
        assert_equal(list(wished), expected)
    assert wished.job.decoded_stats().why == ""
    assert wished.job.decoded_stats().num_taken > 280


@pytest.mark.parametrize("stage", ["before", "between"])
def test_decoded_frame_whose_writer_died_is_decoded_again(aloha_shards, folder, at_once, monkeypatch, stage):
    expected = list(stream_of(aloha_shards, folder, decode="per_read"))
    old = Lease.write

    def write(self, offset, data):
        if len(data) == 1:  # the flag that says that it is there
            raise OSError(28, "as if killed here")
        if stage == "before":
            data = bytes(data.nbytes // 2)  # and half of the frame, with wrong pixels
        return old(self, offset, data)

    stream = stream_of(aloha_shards, folder, decode="once")
    holder = stream_of(aloha_shards, folder).job.cache
    holder.budget()
    with monkeypatch.context() as patch:
        patch.setattr(Lease, "write", write)
        assert_equal(list(stream), expected)  # an error in keeping is none of the reader's
    assert "writing to the cache failed" in stream.job.decoded_stats().why
    other = stream_of(aloha_shards, folder, decode="once")
    for _ in range(2):
        assert_equal(list(other), expected)
    assert other.job.decoded_stats().num_kept > 0
    holder.close()


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


def test_decoded_frames_of_other_options_are_other_entries(aloha_shards, folder, at_once):
    first = stream_of(aloha_shards, folder, decode="once")
    list(first)
    other = stream_of(aloha_shards, folder, decode="once", image_size=(24, 32))
    assert next(iter(other))["observation.images.top"].shape == (7, 3, 24, 32, 3)
    assert_equal(list(other), list(stream_of(aloha_shards, folder, decode="per_read", image_size=(24, 32))))
    assert other.job.cache.stats().made_fills == 2  # smaller ones: a chunk a shard


def test_decoded_torn_frame_is_told_where_it_is_read_as_with_per_read(aloha_shards_copy, folder, at_once):
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
    from epistream.loader.shards.shard_entry import shard_entry
    from epistream.sharding.format.index import ShardIndex

    dataset = stream.job.dataset
    for shard in range(len(dataset.shard_url)):
        with stream.job.cache.open(shard_entry(dataset, shard)) as entry:
            yield ShardIndex.parse(bytes(entry.blobs[1].read(0, entry.blobs[1].size)), "index")


def test_decoded_leases_end_while_a_loop_holds_its_batch(aloha_shards, folder, at_once):
    import fcntl

    stream = stream_of(aloha_shards, folder, decode="once")
    list(stream)
    batches = iter(stream)
    next(batches)
    entries = list(folder.glob("*.shard"))
    assert len(entries) == 6  # two shards, each with two chunks
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


def mapped(folder):
    """The mappings that this process has of entries in a cache's directory, as /proc/self/maps has them."""
    return [line for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]


def test_mappings_end_with_their_reader_without_the_garbage_collector(aloha_shards, folder, at_once):
    stream = stream_of(aloha_shards, folder, mode="auto", decode="once")
    gc.disable()
    try:
        for _ in range(6):
            batches = iter(stream)
            for _ in range(6):
                next(batches)
            num_mapped = len(mapped(folder))
            assert 0 < num_mapped <= 6, "those of the iterator before are gone"
        for _ in batches:
            pass
        assert not mapped(folder), "although somebody keeps the iterator"
    finally:
        gc.enable()
        stream.job.cache.close()


def test_mappings_of_what_was_evicted_are_given_up(aloha_shards, folder, at_once):
    stream = stream_of(aloha_shards, folder, mode="auto", decode="once")
    for _ in range(2):
        for _ in stream:
            pass
    batches = iter(stream)
    next(batches)
    next(batches)
    assert mapped(folder)
    for file in folder.glob("*.shard"):
        file.unlink()
    time.sleep(0.2)
    next(batches)
    assert not [line for line in mapped(folder) if "deleted" in line]
    stream.job.cache.close()
