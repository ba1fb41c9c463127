"""Pools of decoded blocks: the pixels of plain reading, each block decoded once, within the size that was planned."""

import errno
import logging
import os
import shutil
from dataclasses import replace

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hdf5_files import aloha_raw
from pooling.readings import (
    CAMERAS,
    NUM_WINDOWS,
    Reading,
    assert_same,
    by_blocks,
    expected_frames,
    permuted,
    picture,
    pool_of,
    read_all,
)
from video.clips import number_of
from video.episodes import foreign_pairs, foreign_tar

import epistream as es
from epistream.cache.node import NodeCache
from epistream.commands import cli
from epistream.errors import FormatError
from epistream.loader.frames.block_pool_plan import PooledCamera, PoolPlan
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.frames.keeping import DecodedStats
from epistream.loader.monitoring.report import _pooled

WINDOWS = {
    "one step": range(1),
    "two steps": range(-1, 1),
    "four steps": range(-3, 1),
    "far back": [-10, 0],
    "ahead": [0, 2, 3],
    "very far": [-100, -1, 0, 50],
    "not now": [-7, -6],
}


# --- how a block lies -----------------------------------------------------------------------------------


def test_camera_rows_are_the_steps_that_a_block_shows():
    camera = PooledCamera("top", (-6, 0), 4, (2, 3, 3), "|u1")
    assert camera.steps.tolist() == [-6, -5, -4, -3, 0, 1, 2, 3]
    assert camera.places.tolist() == [[0, 4], [1, 5], [2, 6], [3, 7]]
    assert camera.num_bytes == 8 * 18
    assert camera.wanted(8, 100) == ([0, 1, 2, 3, 4, 5, 6, 7], [2, 3, 4, 5, 8, 9, 10, 11])
    # Of the steps before the episode one stays, which shows its first.
    assert camera.wanted(0, 100) == ([4, 5, 6, 7], [0, 1, 2, 3])
    assert camera.wanted(4, 100) == ([2, 3, 4, 5, 6, 7], [0, 1, 4, 5, 6, 7])
    assert PooledCamera("top", (-60, 0), 4, (2, 3, 3), "|u1").wanted(8, 10) == ([3, 4, 5], [0, 8, 9])
    assert PooledCamera("top", (0, 2), 4, (2, 3, 3), "|u1").wanted(4, 6) == ([0, 1], [4, 5])
    assert PooledCamera("top", (50,), 4, (2, 3, 3), "|u1").wanted(0, 1) == ([0], [0])


def test_plan_knows_its_bytes():
    camera = PooledCamera("top", (-1, 0), 8, (48, 64, 3), "|u1")
    plan = PoolPlan((camera, camera), 8, 10, pool_blocks=8, in_flight=2)
    assert plan.slot_bytes == -(-2 * 9 * 48 * 64 * 3 // 4096) * 4096
    assert plan.num_bytes == plan.table_bytes + 10 * plan.slot_bytes
    assert plan.fitting(plan.num_bytes // 2) == 2  # two of the ten are for blocks in flight
    assert plan.fitting(plan.num_bytes) == 8
    assert plan.fitting(plan.num_bytes - 1) == 7
    assert plan.fitting(plan.slot_bytes) == 0
    assert plan.fitting(-1) == 0
    # Two of four lanes are this node's: each slot less is two blocks less.
    plan = PoolPlan((camera, camera), 8, 10, pool_blocks=16, in_flight=2, lanes=(4, 2), least_blocks=8)
    assert plan.fitting(plan.num_bytes) == 16
    assert plan.fitting(plan.num_bytes - 2 * plan.slot_bytes) == 12
    assert plan.fitting(plan.num_bytes - 5 * plan.slot_bytes) == 0


# --- what is read ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", ["edge", "zero"])
@pytest.mark.parametrize("obs", WINDOWS)
def test_pool_gives_the_frames_that_were_recorded(packed, shm, obs, pad):
    obs = WINDOWS[obs]
    windows, ends = by_blocks(8)
    with Reading(packed("png"), shm / "c", obs=obs, pad=pad, plan=pool_of()) as reading:
        batches = read_all(reading, windows, ends)
        assert (reading.stats.num_again, reading.stats.num_unpooled) == (0, 0)
    for camera in CAMERAS:
        found = np.concatenate([batch[camera] for batch in batches])
        np.testing.assert_array_equal(found, expected_frames(windows, obs, pad, camera))


@pytest.mark.parametrize("block_steps", [1, 3, 8, 64])
@pytest.mark.parametrize("codec", ["jpeg", "h264"])
@pytest.mark.parametrize("size", [None, (15, 20)])
def test_pool_gives_what_is_read_without_it(packed, shm, codec, block_steps, size):
    if codec == "h264":
        pytest.importorskip("av")
    windows, ends = by_blocks(block_steps)
    window = es.Window(obs=[-9, -1, 0, 2])
    with Reading(packed(codec), obs=window.obs, size=size) as plain:
        expected = read_all(plain, windows, ends)
    with Reading(packed(codec), shm / "c", obs=window.obs, size=size, plan=pool_of(block_steps)) as reading:
        assert_same(read_all(reading, windows, ends), expected)
        assert (reading.stats.num_again, reading.stats.num_unpooled) == (0, 0)


@pytest.mark.parametrize("num_slots", [1, 3])
def test_pool_too_small_for_its_order_gives_the_same(packed, shm, num_slots, caplog):
    windows = permuted()
    with Reading(packed("png")) as plain:
        expected = read_all(plain, windows, [False] * NUM_WINDOWS)
    plan = pool_of(num_slots=num_slots)
    with Reading(packed("png"), shm / "c", plan=plan) as reading, caplog.at_level(logging.INFO):
        assert_same(read_all(reading, windows, [False] * NUM_WINDOWS), expected)
        assert reading.stats.num_unpooled > 100
        assert reading.stats.why == f"none of the pool's {num_slots} slots is free"
    assert caplog.text.count("slots is free") == 1


def test_pool_decodes_each_frame_of_a_block_once(packed, shm):
    windows, ends = by_blocks(8)
    with Reading(packed("png"), shm / "c", obs=range(-3, 1), plan=pool_of(num_slots=6)) as reading:
        read_all(reading, windows, ends, batch_size=3)
        # Episodes of 1, 2, 9, 17, 40 steps: 1, 1, 2, 3 and 5 blocks; all but the first of each begin 3 steps earlier.
        assert reading.stats == DecodedStats(
            num_taken=2 * 4 * NUM_WINDOWS,
            num_decoded=2 * (NUM_WINDOWS + 3 * (0 + 0 + 1 + 2 + 4)),
            pool_bytes=reading.plan.num_bytes,
        )


def test_pool_of_later_epochs_and_readers_goes_on_with_what_is_there(packed, shm):
    plan = pool_of(num_slots=12)
    with Reading(packed("png"), shm / "c", plan=plan) as one, Reading(packed("png"), shm / "c", plan=plan) as two:
        windows, ends = by_blocks(8)
        read_all(one, windows, ends)
        decoded = one.stats.num_decoded
        read_all(two, windows, ends)
        assert two.stats.num_decoded == 0
        for epoch in range(1, 6):
            windows, ends = by_blocks(8, seed=epoch)
            one.reader.close()
            read_all(one, windows, ends)
        assert one.stats.num_decoded == decoded
        assert one.stats.num_unpooled == 0


@pytest.mark.parametrize("others", [{}, {"block_steps": 4}, {"num_slots": 15}, {"name": "another order"}])
def test_pool_is_shared_by_those_who_mean_the_same(packed, shm, others):
    plan = pool_of()
    with (
        Reading(packed("png"), shm / "c", plan=plan) as one,
        Reading(packed("png"), shm / "c", plan=replace(plan, **others)) as two,
    ):
        for reading in (one, two):
            reading.read([(4, 20)])
        assert (two.stats.num_decoded == 0) == (not others)


def test_pool_takes_the_memory_that_was_planned(packed, shm):
    with Reading(packed("jpeg"), shm / "c", plan=pool_of(num_slots=12)) as reading:
        windows, ends = by_blocks(8)
        reading.read(windows[:1])
        [arena] = [file for file in (shm / "c").glob("*.shard") if file.stat().st_size == reading.plan.num_bytes]
        assert arena.stat().st_blocks * 512 <= reading.plan.table_bytes + 2 * reading.plan.slot_bytes
        for _ in range(3):
            read_all(reading, windows, ends)
        assert arena.stat().st_blocks * 512 == pytest.approx(reading.plan.num_bytes, rel=0.05)


def test_pool_that_is_abandoned_in_the_middle_is_used_again(packed, shm):
    with Reading(packed("png"), shm / "c", plan=pool_of(num_slots=5)) as reading:
        reading.read([(4, 0), (4, 8), (4, 16), (4, 24), (4, 32)])
        reading.reader.close()
        reading.read([(3, 0)])
        reading.read([(3, 0), (3, 8)])
        assert reading.stats.num_unpooled == 0


# --- where there is no room -----------------------------------------------------------------------------


def test_pool_larger_than_the_budget_is_told_once_with_what_fits(packed, shm, caplog):
    windows, ends = by_blocks(8)
    with Reading(packed("png")) as plain:
        expected = read_all(plain, windows, ends)
    plan = pool_of(num_slots=100, pool_blocks=80, in_flight=20, source_bytes=200_000)
    with Reading(packed("png"), shm / "c", plan=plan, budget="2MiB") as reading:
        assert_same(read_all(reading, windows, ends), expected)
        assert reading.stats.num_unpooled == reading.stats.num_decoded == 2 * 2 * NUM_WINDOWS
        fitting = reading.plan.fitting((2 << 20) - 200_000)
        [told] = [record.getMessage() for record in caplog.records if "Blocks are decoded anew" in record.getMessage()]
        assert f"Use pool_blocks={fitting}, or" in told
        assert told.startswith("Blocks are decoded anew for each window that shows them: the cache's budget is 2.0 MiB")
        assert told.partition(": ")[2] == reading.stats.why.rstrip(".") + "."
    smaller = pool_of(num_slots=fitting + 20, pool_blocks=fitting, in_flight=20, source_bytes=200_000)
    with Reading(packed("png"), shm / "c", plan=smaller, budget="2MiB") as reading:
        assert_same(read_all(reading, windows, ends), expected)
        assert reading.stats.num_unpooled == 0


def test_pool_without_a_cache_is_none(packed, caplog):
    windows, ends = by_blocks(8)
    with Reading(packed("png"), plan=pool_of()) as reading:
        found = read_all(reading, windows, ends)
        assert reading.stats.why == "the cache is off"
    np.testing.assert_array_equal(found[0][CAMERAS[1]], expected_frames(windows[:7], (-1, 0), "edge", CAMERAS[1]))
    assert caplog.text.count("Blocks are decoded anew") == 1


def test_pool_on_a_full_file_system_makes_do_with_the_slots_it_has(packed, shm, monkeypatch):
    windows, ends = by_blocks(8)
    with Reading(packed("png"), shm / "c", plan=pool_of()) as reading:
        reading.read([(4, 0), (4, 8)])
        allocate = os.posix_fallocate

        def full(fd, offset, size):
            if size == reading.plan.slot_bytes:
                raise OSError(errno.ENOSPC, "No space left on device")
            allocate(fd, offset, size)

        monkeypatch.setattr(os, "posix_fallocate", full)
        batches = read_all(reading, windows, ends)
        assert reading.stats.why == "none of the pool's 16 slots has memory"
        assert 0 < reading.stats.num_unpooled < reading.stats.num_decoded
    found = np.concatenate([batch[CAMERAS[0]] for batch in batches])
    np.testing.assert_array_equal(found, expected_frames(windows, (-1, 0), "edge", CAMERAS[0]))


def test_pool_is_given_up_while_memory_is_short(packed, shm, monkeypatch):
    monkeypatch.setattr("epistream.loader.frames.block_pool._SHORT_PAUSE_S", 0.0)
    windows, ends = by_blocks(8)
    with Reading(packed("png"), shm / "c", plan=pool_of()) as reading:
        found = read_all(reading, windows[:28], ends[:28])
        monkeypatch.setattr(NodeCache, "is_short", lambda self: True)
        before = reading.stats
        found += read_all(reading, windows[28:56], ends[28:56])
        assert reading.stats.why == "memory is short"
        assert reading.stats.num_unpooled - before.num_unpooled == 2 * 2 * 28
        monkeypatch.setattr(NodeCache, "is_short", lambda self: False)
        found += read_all(reading, windows[56:], ends[56:])
        assert (reading.stats.num_unpooled, reading.stats.why) == (2 * 2 * 28, "")
    frames = np.concatenate([batch[CAMERAS[0]] for batch in found])
    np.testing.assert_array_equal(frames, expected_frames(windows, (-1, 0), "edge", CAMERAS[0]))


def test_video_of_other_planes_is_decoded_for_each_window_and_that_is_told(tmp_path, caplog):
    tar = foreign_tar(tmp_path / "a.tar", [foreign_pairs("ep0", 20, pixels="yuv444p")])
    assert CliRunner().invoke(cli, ["index", str(tar)]).exit_code == 0
    with_pool = es.EpisodeStream(str(tar), batch_size=4, seed=1, remainder="pad")
    assert with_pool.job.part.plan.blocks is not None
    counted = {}
    for batch in with_pool:
        for step, frame in zip(batch["step_index"].tolist(), batch["observation.images.top"].numpy(), strict=True):
            counted[step] = number_of(frame[0])
    assert counted == {step: step for step in range(20)}
    assert "pixels as yuv444p, wanted yuv420p to be kept as planes" in caplog.text


def test_pool_of_hdf5_files_that_were_changed_is_another(tmp_path, shm):
    path = tmp_path / "episode_0.hdf5"
    aloha_raw(path, steps=12, cameras=("top",))
    cache = es.CacheOptions(directory=str(shm / "c"), keep=True)

    def frames():
        order = es.OrderOptions(by="blocks", lanes=1, block_steps=4)
        options = {"image_size": (16, 16), "order": order, "cache": cache, "remainder": "pad"}
        stream = es.EpisodeStream(str(path), batch_size=4, **options)
        with es.StreamingLoader(stream, num_workers=0, num_threads=1) as loader:
            pairs = [(batch["step_index"], batch["observation.images.top"][:, 0].numpy().copy()) for batch in loader]
            assert loader.stats().decoded.num_taken == 12
        return {step: frame for steps, some in pairs for step, frame in zip(steps.tolist(), some, strict=True)}

    before = frames()
    with h5py.File(path, "r+") as file:
        pictures = file["observations/images/top"]
        pictures[5] = pictures[11]  # none of those that the fingerprint of the file looks at
    after = frames()
    assert [step for step in range(12) if not np.array_equal(before[step], after[step])] == [5]
    np.testing.assert_array_equal(after[5], before[11])
    shutil.rmtree(shm / "c")


def test_pool_whose_directory_is_removed_is_made_anew(packed, shm, monkeypatch):
    monkeypatch.setattr("epistream.loader.frames.block_pool._LOOK_S", 0.0)
    windows, ends = by_blocks(8)
    with Reading(packed("png"), shm / "c", plan=pool_of()) as reading:
        read_all(reading, windows[:30], ends[:30])
        for file in (shm / "c").iterdir():
            file.unlink()
        (shm / "c").rmdir()
        batches = read_all(reading, windows, ends)
    found = np.concatenate([batch[CAMERAS[0]] for batch in batches])
    np.testing.assert_array_equal(found, expected_frames(windows, (-1, 0), "edge", CAMERAS[0]))


def test_pool_is_given_up_on_close_and_leased_until_then(packed, shm):
    with Reading(packed("png"), shm / "c", plan=pool_of()) as reading:
        reading.read([(4, 0)])
        with NodeCache(es.CacheOptions(mode="shm", directory=str(shm / "c"), budget_bytes="64MiB")) as other:
            used = other._use().stores.get("shm")
            reading.reader.release()
            used.give_back()
            assert len(list((shm / "c").glob("*.shard"))) == 1, "the pool"
            reading.reader.close()
            used.give_back()
            assert not list((shm / "c").glob("*.shard"))
        reading.read([(4, 0)])
        assert reading.stats.num_unpooled == 0


# --- torn frames ----------------------------------------------------------------------------------------


def test_torn_frame_stops_only_the_windows_that_show_it(packed, shm, tmp_path, monkeypatch):
    with Reading(packed("png"), shm / "c", obs=range(-1, 1), plan=pool_of()) as reading:
        decode = FrameDecoder.decode

        def torn(self, data, out, where):
            decode(self, data, out, where)
            if (out == picture(4, 12, CAMERAS[1])).all():
                out[:] = 0
                raise FormatError("no picture")

        monkeypatch.setattr(FrameDecoder, "decode", torn)
        good = [(4, step) for step in range(40) if step not in (12, 13)]
        for camera in CAMERAS:
            found = reading.read(good)[camera]
            np.testing.assert_array_equal(found, expected_frames(good, (-1, 0), "edge", camera))
        for step in (12, 13):
            with pytest.raises(FormatError, match=r"shard-.*, .*, step 12: no picture"):
                reading.read([(3, 3), (4, step)])
        assert reading.stats.num_again == 0
        np.testing.assert_array_equal(
            reading.read([(3, 3)])[CAMERAS[0]], expected_frames([(3, 3)], (-1, 0), "edge", CAMERAS[0])
        )


def test_report_tells_what_the_pool_did():
    stats = DecodedStats(4000, 1200, pool_bytes=3 << 20)
    assert _pooled(stats) == "4,000 frames copied from a pool of 3.0 MiB, 1,200 decoded"
    more = DecodedStats(4000, 1200, 0, 0, 0, "no room", 3 << 20, 30, 100)
    assert _pooled(more).endswith("1,200 decoded, 30 of them again; 100 decoded for one window alone: no room")
    assert stats + more == DecodedStats(8000, 2400, 0, 0, 0, "no room", 3 << 20, 30, 100)
