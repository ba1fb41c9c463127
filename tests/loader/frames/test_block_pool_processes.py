"""Pools of decoded blocks that processes share: each block decoded once, whoever dies, stops or forks meanwhile."""

import multiprocessing
import os
import random
import signal
import time
import traceback
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from machine.killing import killed_at
from machine.waiting import wait_until
from pooling.readings import CAMERAS, NUM_WINDOWS, Reading, by_blocks, expected_frames, pool_of, read_all

from epistream.loader.frames import block_pool
from epistream.loader.frames.block_pool import BlockPool
from epistream.loader.frames.keeping import DecodedStats
from epistream.loader.frames.pooled_frames import PooledFrames

# Those whose lines somebody may be killed at.
FILES = ("block_pool.py", "arena_slots.py", "arena.py", "frames.py")
DEADLINE_S = 60.0
OBS = range(-1, 1)


def assert_recorded(batches, windows, most_off=0):
    for camera in CAMERAS:
        found = np.concatenate([batch[camera] for batch in batches]).astype(int)
        assert np.abs(found - expected_frames(windows, OBS, "edge", camera)).max() <= most_off


def is_open(pool):
    """Whether a pool is open; it is looked for in vain for a moment while another process makes it."""
    nobody = np.zeros(0, np.int64)
    pool.begin_batch(nobody, nobody, np.zeros(0, np.bool_))
    return pool._arena is not None


def read_share(folder, directory, plan, rank, num_ranks, together, pipe):
    """A process: reads every so many windows of each of three epochs, beside the others."""
    most_off = 4 if folder.name == "h264" else 0  # less than a step is off another one
    with Reading(folder, directory, obs=OBS, plan=plan) as reading:
        wait_until(partial(is_open, reading.reader._pool), "the pool is open")
        for epoch in range(3):
            windows, ends = by_blocks(plan.block_steps, seed=epoch)
            together.wait(DEADLINE_S)
            own = windows[rank::num_ranks]
            assert_recorded(read_all(reading, own, ends[rank::num_ranks], batch_size=3), own, most_off)
        together.wait(DEADLINE_S)
        pipe.send(reading.stats)


@pytest.mark.parametrize(("num_ranks", "method"), [(2, "fork"), (4, "fork"), (2, "spawn")])
@pytest.mark.parametrize("codec", ["png", "h264"])
def test_pool_is_filled_once_by_all_processes_of_a_node(packed, shm, num_ranks, method, codec):
    if codec == "h264":
        pytest.importorskip("av")
    if codec == "h264" and method == "spawn":
        pytest.skip("starts slowly; fork has shown it")
    context = multiprocessing.get_context(method)
    together, plan = context.Barrier(num_ranks), pool_of(num_slots=12)  # as many as there are blocks
    pipes = [context.Pipe() for _ in range(num_ranks)]
    processes = [
        context.Process(
            target=read_share,
            args=(packed(codec), shm / "c", plan, rank, num_ranks, together, pipes[rank][1]),
            daemon=True,
        )
        for rank in range(num_ranks)
    ]
    for process in processes:
        process.start()
    stats = DecodedStats()
    for ours, _ in pipes:
        assert ours.poll(DEADLINE_S)
        stats += ours.recv()
    for process in processes:
        process.join(DEADLINE_S)
        assert process.exitcode == 0
    # Episodes of 1, 2, 9, 17, 40 steps: all blocks but the first of each begin a step earlier.
    assert stats.num_decoded - stats.num_unpooled == 2 * (NUM_WINDOWS + 1 + 2 + 4)
    assert stats.num_unpooled <= 0.2 * 3 * 2 * 2 * NUM_WINDOWS  # who had to wait for too long


def in_child(work):
    """A forked child that does some work, and is killed in it or ends."""
    child = os.fork()
    if child == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(4)
    return child


def test_reader_killed_anywhere_leaves_a_pool_that_goes_on(packed, shm):
    folder, plan = packed("png"), pool_of(num_slots=3)
    windows = [(4, 3), (4, 12), (3, 9), (4, 13)]
    rng = random.Random(3)
    with Reading(folder, shm / "c", obs=OBS, plan=plan) as reading:
        line, is_killed = 0, True
        while is_killed:
            # All three slots hold other blocks, which are done with: the child has to give them away.
            others = [(2, 1), (3, 1), (4, 33)]
            assert_recorded([reading.read(others, [True] * 3)], others)

            def read(line=line):
                with Reading(folder, shm / "c", obs=OBS, plan=plan) as its:
                    killed_at(
                        line, FILES, lambda: assert_recorded([its.read(windows, [False, True, True, True])], windows)
                    )

            status = os.waitpid(in_child(read), 0)[1]
            is_killed = os.WIFSIGNALED(status)
            assert is_killed or os.WEXITSTATUS(status) == 0
            before = reading.stats.num_unpooled
            assert_recorded([reading.read(windows, [True] * 4)], windows)
            assert reading.stats.num_unpooled == before, line
            line += rng.randrange(1, 60)
        assert line > 300


def test_reader_goes_on_without_a_block_whose_decoder_is_stopped(packed, shm, monkeypatch):
    folder, plan = packed("png"), pool_of()
    monkeypatch.setattr(block_pool, "_PATIENCE_S", 0.02)
    ready, told = os.pipe()
    decode = PooledFrames.decode

    def stop(*arguments):
        num_frames = decode(*arguments)
        os.write(told, b"!")
        os.kill(os.getpid(), signal.SIGSTOP)
        return num_frames

    def read():
        monkeypatch.setattr(PooledFrames, "decode", stop)
        with Reading(folder, shm / "c", obs=OBS, plan=plan) as its:
            its.read([(4, 3)])

    with Reading(folder, shm / "c", obs=OBS, plan=plan) as reading:
        reading.read([(4, 12)])
        child = in_child(read)
        try:
            assert os.read(ready, 1) == b"!"
            windows = [(4, 3), (4, 12), (4, 5), (4, 20)]
            for number in (1, 2):
                assert_recorded([reading.read(windows)], windows)
                assert reading.stats.num_unpooled == number * 2 * 2 * 2, "the block in the stopped one's hands"
            with monkeypatch.context() as patient:
                patient.setattr(block_pool, "_PATIENCE_S", DEADLINE_S)
                began = time.monotonic()
                assert_recorded([reading.read(windows)], windows)
                assert time.monotonic() - began < DEADLINE_S, "waited for once"
        finally:
            os.kill(child, signal.SIGCONT)
            status = os.waitpid(child, 0)[1]
        assert os.WEXITSTATUS(status) == 0
        before = reading.stats
        assert_recorded([reading.read(windows)], windows)
        assert reading.stats.num_decoded == before.num_decoded, "it has finished"
    os.close(ready)
    os.close(told)


def test_reader_waits_for_a_block_that_another_one_decodes(packed, shm, monkeypatch):
    folder, plan = packed("png"), pool_of()
    monkeypatch.setattr(block_pool, "_PATIENCE_S", DEADLINE_S)
    ready, told = os.pipe()
    go, going = os.pipe()
    decode = PooledFrames.decode

    def wait(*arguments):
        os.write(told, b"!")
        os.read(go, 1)
        return decode(*arguments)

    def read():
        monkeypatch.setattr(PooledFrames, "decode", wait)
        with Reading(folder, shm / "c", obs=OBS, plan=plan) as its:
            its.read([(4, 3)])

    with Reading(folder, shm / "c", obs=OBS, plan=plan) as reading:
        child = in_child(read)
        assert os.read(ready, 1) == b"!"
        draws = []
        draw = BlockPool.draw

        def watched(self, opened, rows, *more, wait):
            draws.append((rows.tolist(), wait))
            if wait:
                os.write(going, b"!")  # everything else of the batch was read before anybody is waited for
            return draw(self, opened, rows, *more, wait=wait)

        monkeypatch.setattr(BlockPool, "draw", watched)
        windows = [(0, 0), (4, 3), (4, 12)]
        assert_recorded([reading.read(windows)], windows)
        assert os.waitpid(child, 0)[1] == 0
        assert [rows for rows, wait in draws if wait] == [[1]]
        assert reading.stats.num_unpooled == 0
        assert reading.stats.num_decoded == 2 * (1 + 9), "not the block of the other"
    for fd in (ready, told, go, going):
        os.close(fd)


def test_reader_in_a_forked_child_opens_the_pool_for_itself(packed, shm):
    windows, ends = by_blocks(8)
    with Reading(packed("png"), shm / "c", obs=OBS, plan=pool_of()) as reading:
        assert_recorded(read_all(reading, windows[:20], ends[:20]), windows[:20])
        reading.reader.release()  # of shards; the pool stays open

        def read():
            assert reading.stats == DecodedStats()
            assert_recorded(read_all(reading, windows, ends), windows)
            assert 0 < reading.stats.num_decoded < 2 * NUM_WINDOWS
            reading.reader.close()
            reading.cache.close()

        assert os.waitpid(in_child(read), 0)[1] == 0
        decoded = reading.stats.num_decoded
        assert_recorded(read_all(reading, windows, ends), windows)
        assert reading.stats.num_decoded == decoded, "the child has decoded the rest, and the parent finds it"


def test_plan_counts_afresh_in_another_process(packed):
    plan = replace(pool_of(), name="x")
    plan.counts.add(DecodedStats(1, 2))
    assert plan.counts.stats() == DecodedStats(1, 2)

    def look():
        assert plan.counts.stats() == DecodedStats()
        plan.counts.add(DecodedStats(3))
        assert plan.counts.stats() == DecodedStats(3)

    assert os.waitpid(in_child(look), 0)[1] == 0
