"""Groups of videos that are kept: each decoded once by one process of a node, whatever becomes of that process."""

import os
import shutil
import signal
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from counting.videos import CAMERAS, HEIGHT, WIDTH, counter_of, encoded, with_b_frames, write_shard
from handmade import publish
from machine.waiting import wait_until

import epistream as es
from epistream.errors import EpistreamError
from epistream.loader.frames import decoded_frames, decoded_groups, frame_decoder
from epistream.loader.frames.decoded_groups import DecodedGroups, KeptFrames
from epistream.sharding.format.index import ShardIndex

NUM_EPISODES, LENGTH, GOP = 3, 40, 8
NUM_FRAMES = NUM_EPISODES * LENGTH
FRAME_BYTES = HEIGHT * WIDTH * 3


@pytest.fixture
def folder():
    """A cache directory in memory, where there is one."""
    shm = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="groups-test-", dir=shm if shm.is_dir() else None))
    yield path / "cache"
    shutil.rmtree(path, ignore_errors=True)


def published(folder, videos):
    write_shard(folder, videos)
    data = (folder / "shard-000000.index").read_bytes()
    publish(folder, {"shard-000000.tar": (ShardIndex.parse(data, "index"), data)})
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Episode e, step t shows 100 e + t."""
    videos = [encoded(range(100 * episode, 100 * episode + LENGTH), GOP) for episode in range(NUM_EPISODES)]
    return published(tmp_path_factory.mktemp("counted"), videos)


@pytest.fixture
def patient(monkeypatch):
    """Others are waited for until they are done."""
    monkeypatch.setattr(decoded_groups, "_PATIENCE_S", 120.0)


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of three steps, across the borders of which groups lie."""
    monkeypatch.setattr(decoded_frames, "_CHUNK_BYTES", (3 * FRAME_BYTES, 64 << 20))
    monkeypatch.setattr(decoded_frames, "_NUM_CHUNKS", 1000)


def stream_of(shards, folder, budget_bytes=64 << 20, mode="shm", **options):
    cache = es.CacheOptions(mode=mode, directory=str(folder), budget_bytes=budget_bytes)
    options = {"batch_size": 4, "window": es.Window(obs=[-3, 0], action=[0]), "decode": "once", **options}
    return es.EpisodeStream(shards, cache=cache, **options)


def assert_right(batch):
    for row, (episode, step) in enumerate(zip(batch["episode_index"], batch["step_index"], strict=True)):
        for place, at in enumerate((max(0, int(step) - 3), int(step))):
            assert counter_of(np.asarray(batch[CAMERAS[0]][row, place])) == 100 * int(episode) + at


def read_all(loader):
    for batch in loader:
        assert_right(batch)


@pytest.mark.parametrize("chunks", ["large", "small"])
def test_every_frame_is_decoded_once_in_the_first_epoch_and_none_later(shards, folder, chunks, request):
    if chunks == "small":
        request.getfixturevalue("small_chunks")
    stream = stream_of(shards, folder)
    for _ in range(2):
        read_all(stream)
        stats = stream.job.decoded_stats()
        assert (stats.num_decoded, stats.num_kept) == (NUM_FRAMES, NUM_FRAMES)
    assert stats.why == ""
    assert stats.room_bytes == stats.all_bytes == NUM_FRAMES * FRAME_BYTES


def test_frames_out_of_order_are_decoded_once_too(folder, tmp_path):
    videos = [with_b_frames(range(100 * episode, 100 * episode + LENGTH), GOP) for episode in range(NUM_EPISODES)]
    stream = stream_of(published(tmp_path / "b", videos), folder)
    read_all(stream)
    assert stream.job.decoded_stats().num_decoded == NUM_FRAMES


@pytest.mark.parametrize("way", [{"num_workers": 2}, {"num_workers": 0, "num_threads": 3}])
def test_every_frame_is_decoded_once_by_all_workers_together(shards, folder, way, patient):
    with es.StreamingLoader(stream_of(shards, folder), **way) as loader:
        for _ in range(2):
            read_all(loader)
        stats = loader.stats().decoded
    assert (stats.num_decoded, stats.num_kept) == (NUM_FRAMES, NUM_FRAMES)


def forked(action):
    """A child that does something and dies of it, at the latest when it is done; its id."""
    pid = os.fork()
    if not pid:
        try:
            action()
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    return pid


def reap(pid):
    assert os.waitpid(pid, 0)[0] == pid


@pytest.fixture
def halted(shards, folder, monkeypatch):
    """Starts a process that sends itself a signal after so many frames that it keeps, in the middle of a group."""
    holder = stream_of(shards, folder).job.cache
    holder.budget()  # the cache's directory outlives the process
    children = []

    def start(num_frames, number):
        put = KeptFrames.put
        left = [num_frames]

        def stop_at_last(self, at, frame):
            if left[0] == 0:
                os.kill(os.getpid(), number)
            left[0] -= 1
            return put(self, at, frame)

        def read():
            KeptFrames.put = stop_at_last
            list(stream_of(shards, folder))

        children.append(forked(read))
        return children[-1]

    yield start
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        reap(pid)
    holder.close()


def state_of(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_group_of_a_killed_process_is_decoded_again_at_once(shards, folder, halted, patient):
    pid = halted(GOP + 3, signal.SIGKILL)
    wait_until(lambda: state_of(pid) == "Z", "the death of the child")
    stream = stream_of(shards, folder)
    read_all(stream)
    stats = stream.job.decoded_stats()
    # One group was whole, and three frames of the next.
    assert (stats.num_decoded, stats.num_kept) == (NUM_FRAMES - GOP, NUM_FRAMES - GOP - 3)


def test_stopped_process_is_waited_for_once_and_no_longer_than_the_deadline(shards, folder, halted, monkeypatch):
    pid = halted(GOP + 3, signal.SIGSTOP)
    wait_until(lambda: state_of(pid) == "T", "the child to stop")
    monkeypatch.setattr(decoded_groups, "_PATIENCE_S", 0.05)
    waited = []
    finish = DecodedGroups.finish

    def note(self, spent):
        left = len(self._left)
        finish(self, spent)
        waited.append(left)

    monkeypatch.setattr(DecodedGroups, "finish", note)
    for _ in range(2):
        stream = stream_of(shards, folder)
        read_all(stream)
    assert sum(waited) == 1
    # Who went on after having been stopped changes nothing.
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: state_of(pid) == "Z", "the end of the child")
    read_all(stream)


def test_process_that_makes_a_chunk_is_waited_for(shards, folder, patient, monkeypatch):
    stream = stream_of(shards, folder)
    asked = []
    open_entry = decoded_frames.KeptArrays.open

    def busy_at_first(self, key, *arguments, **options):
        asked.append(key)
        if len(asked) <= 3:
            self._busy.add(key)
            self._look_at[key] = float("inf")
            return None
        return open_entry(self, key, *arguments, **options)

    monkeypatch.setattr(decoded_frames.KeptArrays, "open", busy_at_first)
    read_all(stream)
    assert len(asked) >= 4
    assert stream.job.decoded_stats().num_decoded == NUM_FRAMES


def test_process_that_is_stopped_while_it_makes_a_chunk_is_waited_for_once(shards, folder, monkeypatch):
    def busy(self, key, *arguments, **options):
        self._busy.add(key)
        self._look_at[key] = float("inf")

    waited = []
    finish = DecodedGroups.finish

    def note(self, spent):
        waited.append(len(self._left) > 0)
        finish(self, spent)

    monkeypatch.setattr(decoded_frames.KeptArrays, "open", busy)
    monkeypatch.setattr(decoded_groups, "_PATIENCE_S", 0.05)
    monkeypatch.setattr(DecodedGroups, "finish", note)
    stream = stream_of(shards, folder)
    read_all(stream)
    assert waited[0]
    assert sum(waited) == 1
    assert stream.job.decoded_stats().num_kept == 0


def test_others_are_waited_for_only_after_the_rest_of_the_batch(shards, folder, patient, monkeypatch):
    order = []
    try_lock, decode = KeptFrames.try_lock, DecodedGroups._decode
    refused = set()

    def refuse_once(self, at):
        if at not in refused:
            refused.add(at)
            order.append("refused")
            return False
        return try_lock(self, at)

    def note(self, *arguments):
        order.append("decoded")
        decode(self, *arguments)

    monkeypatch.setattr(KeptFrames, "try_lock", refuse_once)
    monkeypatch.setattr(DecodedGroups, "_decode", note)
    stream = stream_of(shards, folder, batch_size=40)
    read_all(stream)
    # The groups of a batch of 40 windows, each refused once: all of them are asked for before any is waited for.
    assert order.index("decoded") >= 8
    assert stream.job.decoded_stats().num_decoded == NUM_FRAMES


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_groups_without_room_are_decoded_as_far_as_needed_and_are_right(shards, folder, small_chunks, share):
    budget = int((shards / "shard-000000.tar").stat().st_size + share * NUM_FRAMES * FRAME_BYTES) + (2 << 20)
    stream = stream_of(shards, folder, budget)
    for _ in range(3):
        read_all(stream)


def test_torn_frame_behind_what_is_wanted_harms_nobody(shards, folder, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "torn")
    index = ShardIndex.parse((copy / "shard-000000.index").read_bytes(), "index")
    with (copy / "shard-000000.tar").open("r+b") as file:
        file.seek(int(index.frame_offset[CAMERAS[0]][6]))
        file.write(bytes(int(index.frame_size[CAMERAS[0]][6])))
    stream = stream_of(copy, folder, mode="auto", batch_size=1, shuffle=False, window=es.Window(obs=[0], action=[0]))
    batches = iter(stream)
    for step in range(6):
        assert counter_of(np.asarray(next(batches)[CAMERAS[0]][0, 0])) == step
    with pytest.raises(EpistreamError, match=rf"ep-000000000.{CAMERAS[0]}: frame 6 "):
        next(batches)


def test_full_file_system_ends_keeping_and_no_batch(shards, folder, monkeypatch):
    def refuse(self, at, frame):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(KeptFrames, "put", refuse)
    stream = stream_of(shards, folder)
    read_all(stream)
    assert "No space left" in stream.job.decoded_stats().why


def test_locks_end_with_their_batch(shards, folder):
    # Two readers in one process: a lock of the first that stayed would make the second wait in vain.
    first, second = stream_of(shards, folder), stream_of(shards, folder)
    batches = iter(first)
    assert_right(next(batches))
    read_all(second)
    assert first.job.decoded_stats().num_decoded + second.job.decoded_stats().num_decoded == NUM_FRAMES
    for batch in batches:
        assert_right(batch)


def test_decoder_of_each_reader_is_its_own(shards, folder, monkeypatch):
    used = {}
    pictures = frame_decoder.FrameDecoder.pictures

    def note(self, *arguments):
        used.setdefault(id(self), set()).add(threading.get_ident())
        return pictures(self, *arguments)

    monkeypatch.setattr(frame_decoder.FrameDecoder, "pictures", note)
    with es.StreamingLoader(stream_of(shards, folder), num_workers=0, num_threads=3) as loader:
        read_all(loader)
    assert {len(threads) for threads in used.values()} == {1}
