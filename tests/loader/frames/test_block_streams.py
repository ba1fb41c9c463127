"""Streams by blocks: what they yield is the order alone, whatever is decoded once, and by whom."""

from dataclasses import replace

import pytest
import torch
from pooling.readings import CAMERAS, LENGTHS, NUM_WINDOWS

import epistream as es
from epistream.errors import FormatError
from epistream.loader.frames.frame_decoder import FrameDecoder

ORDER = es.OrderOptions(by="blocks", block_steps=8, pool_blocks=8, lanes=2)
# Blocks of episodes of 1, 2, 9, 17, 40 steps, whose windows show the step before too.
ONCE = len(CAMERAS) * (NUM_WINDOWS + 0 + 0 + 1 + 2 + 4)


def stream_of(folder, cache, decode="auto", order=ORDER, **options):
    return es.EpisodeStream(
        folder,
        **{"batch_size": 6, "window": es.Window(obs=range(-1, 1)), "remainder": "uneven", "seed": 3, **options},
        decode=decode,
        order=order,
        cache=es.CacheOptions(directory=str(cache), budget_bytes="64MiB"),
    )


def assert_same(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        assert batch.keys() == other.keys()
        for key, value in other.items():
            assert batch[key] == value if key == "task" else torch.equal(batch[key], value), key


@pytest.mark.parametrize("codec", ["png", "h264"])
@pytest.mark.parametrize("pad", ["edge", "zero"])
def test_stream_by_blocks_decodes_once_and_gives_the_batches_of_per_read(packed, shm, codec, pad):
    if codec == "h264":
        pytest.importorskip("av")
    window = es.Window(obs=range(-1, 1), pad=pad)
    plain = stream_of(packed(codec), shm / "c", "per_read", window=window)
    stream = stream_of(packed(codec), shm / "c", window=window)
    for epoch in range(3):
        plain.set_epoch(epoch)
        stream.set_epoch(epoch)
        assert_same(stream, list(plain))
    stats = stream.job.decoded_stats()
    assert (stats.num_again, stats.num_unpooled) == (0, 0)
    assert stats.num_decoded <= 3 * ONCE
    plain.job.cache.close()
    stream.job.cache.close()


@pytest.mark.parametrize("way", [{"num_workers": 2}, {"num_workers": 0, "num_threads": 2}])
def test_workers_share_the_blocks_of_a_stream(packed, shm, way):
    plain = stream_of(packed("png"), shm / "c", "per_read")
    with es.StreamingLoader(stream_of(packed("png"), shm / "c"), **way) as loader:
        for epoch in range(3):
            plain.set_epoch(epoch)
            loader.set_epoch(epoch)
            assert_same(loader, list(plain))
        stats = loader.stats().decoded
    assert stats.num_again <= 0.2 * 3 * ONCE  # who had to wait for too long does without
    assert stats.num_decoded - stats.num_unpooled <= 1.2 * 3 * ONCE
    assert stats.pool_bytes > 0
    plain.job.cache.close()


@pytest.mark.parametrize(
    ("decode", "order", "has_pool"),
    [
        ("auto", ORDER, True),
        ("once", ORDER, False),
        ("per_read", ORDER, False),
        ("auto", es.OrderOptions(lanes=2), False),
    ],
)
def test_pool_is_planned_for_blocks_unless_the_user_says_how_to_decode(packed, shm, decode, order, has_pool):
    job = stream_of(packed("png"), shm / "c", decode, order).job
    [options] = job.reader_options
    assert (options.pool is not None) == has_pool
    assert (options.decoded is not None) == (not has_pool and decode != "per_read")
    assert job.pool_bytes == (options.pool.num_bytes if has_pool else 0)
    if has_pool:
        assert options.pool.block_steps == 8
        assert options.pool.pool_blocks == 8
    job.cache.close()


def test_pool_of_more_batches_at_once_has_more_slots(packed, shm):
    order = es.OrderOptions(by="blocks", block_steps=2, pool_blocks=4, lanes=2)
    job = stream_of(packed("png"), shm / "c", order=order).job
    slots = [replace(job, batches_at_once=number).reader_options[0].pool.num_slots for number in (1, 3, 100)]
    assert slots == sorted(slots)
    assert slots[0] < slots[1]
    assert slots[2] <= sum(-(-length // 2) for length in LENGTHS) + 1, "as many as there are blocks"
    assert job.budget_ahead(0) is None or job.budget_ahead(0) >= 0
    job.cache.close()


def test_bad_shard_of_a_stream_by_blocks_is_skipped(packed, shm, monkeypatch):
    decode = FrameDecoder.decode

    def torn(self, data, out, where):
        decode(self, data, out, where)
        if out[0, 0, 0] == 10 + 40 * 4 + 3 and out[0, 0, 1] == 3 + 5 * 20:  # episode 4, step 20
            raise FormatError("no picture")

    monkeypatch.setattr(FrameDecoder, "decode", torn)
    stream = stream_of(packed("png"), shm / "c")
    with pytest.raises(FormatError, match="step 20: no picture"):
        list(stream)
    stream.job.cache.close()
    stream = stream_of(packed("png"), shm / "c", on_bad="skip", order=replace(ORDER, lanes=1))
    batches = list(stream)
    assert sum(len(batch["step_index"]) for batch in batches) == NUM_WINDOWS
    for batch in batches:
        shown = batch[CAMERAS[0]][:, -1, 0, 0]
        assert torch.equal(shown[:, 0].long(), 13 + 40 * batch["episode_index"])
        assert torch.equal(shown[:, 1].long(), 3 + 5 * batch["step_index"])
    stream.job.cache.close()
