"""The small files and the steps by which processes of any release agree in a cache's directory."""

import fcntl
import hashlib
import json
import os
import re
import time

import pytest
from cache_actors import SIZE, content, get, key_of, open_test_store

import epistream as es
from epistream.cache.node import NodeCache
from epistream.cache.source.entry import Entry, Part
from epistream.cache.store.budget import Limits
from epistream.cache.store.markers import mark_kept
from epistream.cache.store.places import default_name
from epistream.cache.store.pressure import Relief
from epistream.cgroups import System
from epistream.errors import FetchError, SourceError

DEADLINE_S = 30.0
# Every step that a process passes, in this order.
COUNT = ["total.counted", "total.opened", "total.closed"]
ENTER = ["enter.opened", "enter.locked", "open.locked", *COUNT, "open.shared"]
FILL = [
    "turn.poll",
    "turn.locked",
    "reserve.locked",
    "reserve.evicted",
    "total.opened",
    "reserve.created",
    "reserve.sized",
    "total.closed",
    "fill.reserved",
    "fill.freed",
    "fill.allocated",
    "fill.verified",
    "fill.leased",
    "publish.locked",
    "fill.renamed",
    "fill.dropped",
    "fill.done",
]
HIT = ["hit.opened", "hit.locked"]


def names(folder):
    return {path.name for path in folder.iterdir()}


def boot_time_s():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def test_keep_file_is_empty_for_all_and_has_a_line_for_each_of_some_keys(cache_path):
    store = open_test_store(cache_path)
    get(store, 1).close()
    get(store, 2).close()
    mark_kept(store.directory.dir_fd, [key_of(2), key_of(7)])
    assert (cache_path / ".keep").read_text() == f"{key_of(2)}\n{key_of(7)}\n"
    store.directory.leave()
    assert {name for name in names(cache_path) if name.endswith(".shard")} == {f"{key_of(2)}.shard"}
    store = open_test_store(cache_path)
    mark_kept(store.directory.dir_fd)
    assert (cache_path / ".keep").read_bytes() == b""
    store.directory.leave()
    assert f"{key_of(2)}.shard" in names(cache_path)


def test_fill_in_progress_is_a_part_of_full_size_and_a_process_id(cache_path):
    seen = []

    def observe(step):
        if step == "fill.verified":
            part = (cache_path / f"{key_of(1)}.part").stat().st_size
            seen.append((part, (cache_path / f"{key_of(1)}.fill").read_text(), names(cache_path)))

    store = open_test_store(cache_path, observe=observe)
    get(store, 1).close()
    files = {".users", ".lock", ".budget", f"{key_of(1)}.part", f"{key_of(1)}.fill"}
    assert seen == [(SIZE, str(os.getpid()), files)]
    assert (cache_path / f"{key_of(1)}.shard").read_bytes() == content(1)
    assert (cache_path / ".budget").read_text() == "none"
    store.directory.leave()


def test_directory_that_is_left_is_called_dead_before_it_is_emptied(cache_path):
    seen = []

    def observe(step):
        if step == "leave.renamed":
            seen.extend(names(cache_path.parent))

    open_test_store(cache_path, observe=observe).directory.leave()
    assert len(seen) == 1
    assert re.fullmatch(rf"\.dead-cache-{os.getpid()}-[0-9a-f]{{8}}", seen[0])


def test_relief_notes_the_time_of_the_boot_clock_in_a_file_of_its_own(cache_path, tmp_path):
    (tmp_path / "pressure").mkdir()
    (tmp_path / "pressure" / "memory").write_text("some avg10=50.00 avg60=0.00 avg300=0.00 total=9\n")
    store = open_test_store(cache_path, limits=Limits(system=System(tmp_path)))
    get(store, 1).close()
    assert Relief().look(store) == SIZE
    noted = float((cache_path / ".pressure").read_text())
    assert abs(boot_time_s() - noted) < DEADLINE_S
    store.directory.leave()


def test_claim_is_a_shared_lock_on_a_file_of_the_group_that_tells_its_bytes(cache_path):
    options = es.CacheOptions(mode="shm", directory=str(cache_path))
    group = hashlib.blake2b(b"decoded x", digest_size=4).hexdigest()
    with NodeCache(options) as cache:
        assert cache.claim("decoded x", 12345) == 0
        with (cache_path / f"claim-{group}").open() as ours:
            assert ours.read().strip() == "12345"
            fcntl.flock(ours, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(ours, fcntl.LOCK_UN)
            with pytest.raises(BlockingIOError):
                fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Of another release: what it claims counts, and what the dead left does not.
        with (cache_path / "claim-00000001").open("w") as other:
            other.write("77")
            other.flush()
            fcntl.flock(other, fcntl.LOCK_SH)
            (cache_path / "claim-00000002").write_text("88")
            assert cache.claim("decoded x", 12345) == 77


def test_directory_of_a_user_is_named_by_the_user():
    assert default_name() == f"epistream-{os.geteuid()}"


def test_budget_that_another_release_agreed_on_is_kept(cache_path):
    cache_path.mkdir(mode=0o700)
    (cache_path / ".budget").write_text("8192")
    store = open_test_store(cache_path)
    assert store.budget().terms["cap"] == 8192
    store.directory.leave()


def test_note_of_a_failed_fill_is_written_so_and_followed(tmp_path, cache_path):
    missing = Entry((Part(str(tmp_path / "missing.tar"), 5, "5" * 32),))
    options = es.CacheOptions(mode="shm", directory=str(cache_path), budget_bytes=1 << 20)
    with NodeCache(options) as cache:
        with pytest.raises(SourceError) as caught:
            cache.open(missing)
        note = json.loads((cache_path / f"{missing.key}.fill").read_text())
        assert list(note) == ["kind", "error", "text", "time_s"]
        assert (note["kind"], note["error"], note["text"]) == ("failed", "SourceError", str(caught.value))
        assert abs(boot_time_s() - note["time_s"]) < DEADLINE_S
        other = Entry((Part(str(tmp_path / "other.tar"), 5, "6" * 32),))
        said = {"kind": "failed", "error": "FetchError", "text": "said by another release", "time_s": boot_time_s()}
        (cache_path / f"{other.key}.fill").write_text(json.dumps(said))
        with pytest.raises(FetchError, match="said by another release"):
            cache.open(other)


def test_steps_of_a_store_are_these_in_this_order(cache_path):
    steps = []
    store = open_test_store(cache_path, cap=SIZE, observe=steps.append)
    assert steps == ENTER
    steps.clear()
    get(store, 1).close()
    assert steps == FILL
    steps.clear()
    get(store, 1).close()
    assert steps == HIT
    steps.clear()
    get(store, 2).close()
    evicting = [
        "total.opened",
        "evict.locked",
        "evict.unlinked",
        *(step for step in FILL[3:] if step != "total.opened"),
    ]
    assert steps == [*FILL[:3], *COUNT, *evicting]
    steps.clear()
    (cache_path / f"{key_of(5)}.part").write_bytes(b"left by the dead")
    get(store, 3).close()
    dead = ["total.opened", "remains.part", "total.counted", "total.closed"]
    assert steps == [*FILL[:3], *dead, *evicting]
    steps.clear()
    (cache_path / f"{key_of(4)}.part").write_bytes(b"left by the dead")
    (cache_path / f"{key_of(3)}.shard").unlink()
    get(store, 4).close()
    assert steps[:5] == [*FILL[:3], *dead[:2]]
    steps.clear()
    store.directory.leave()
    files = [".budget", ".lock", ".users", f"{key_of(4)}.shard"]
    left = ["leave.begin", "leave.exclusive", "leave.renamed", "leave.unlocked", *["remove.one"] * len(files)]
    assert steps == [*left, "leave.removed"]


def test_steps_of_a_wait_for_room_are_these_in_this_order(cache_path):
    steps = []
    store = open_test_store(cache_path, cap=SIZE, observe=steps.append, room_timeout_s=0.0)
    lease = get(store, 1)
    steps.clear()
    with pytest.raises(OSError, match="keep fewer shards resident"):
        get(store, 2)
    assert steps == [*FILL[:3], *COUNT, "room.wait", "room.noted"]
    note = json.loads((cache_path / f"{key_of(2)}.fill").read_text())
    assert (note["kind"], note["error"]) == ("bypass", "")
    lease.close()
    store.directory.leave()


def test_steps_of_a_sweep_are_these_in_this_order(cache_path):
    dead = cache_path.with_name(".dead-cache-1-0123abcd")
    dead.mkdir(mode=0o700)
    (dead / ".users").touch()
    steps = []
    store = open_test_store(cache_path, observe=steps.append)
    assert steps == [*ENTER, "sweep.buried", "remove.one"]
    store.directory.leave()


def test_lines_of_a_monitor_come_from_the_logger_that_users_were_told(stored, caplog):
    stream = es.EpisodeStream(stored / "jpeg", batch_size=4, cache="off")
    options = es.MonitorOptions(log_every_s=1e-9)
    with (
        caplog.at_level("INFO", logger="epistream.loader.monitor"),
        es.StreamingLoader(stream, num_workers=0, monitor=options) as loader,
    ):
        list(loader)
    assert {record.name for record in caplog.records if "windows/s" in record.message} == {"epistream.loader.monitor"}
