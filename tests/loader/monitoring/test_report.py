"""The report: each thing that can limit a run is named when it does, with a cure that fits."""

import io
import json

import pytest

import epistream as es
from epistream.cache.stats import CacheStats
from epistream.cgroups import System
from epistream.loader.monitoring.diagnosis import Situation, find_limit, find_remarks
from epistream.loader.monitoring.report import _disk
from epistream.loader.monitoring.stats import LoaderStats
from epistream.loader.workers.cores import num_usable_cores
from epistream.loader.workers.thread_time import ThreadTime

CROWD = Situation(num_workers=2, num_cores=8, local_ranks=2, num_shards=10)


def stats_of(
    *, wait: float = 0.5, cpu: float = 0.0, queue: float = 0.0, blocked: float = 0.0, idle: float = 0.0, **more
):
    """Ten seconds of a loop and of its workers, by shares."""
    return LoaderStats(
        num_batches=more.pop("num_batches", 100),
        num_windows=800,
        elapsed_s=10.0,
        data_wait_s=10 * wait,
        worker_busy_s=10 * (cpu + queue + blocked),
        worker_idle_s=10 * idle,
        effort=ThreadTime(10 * cpu, 10 * queue, more.pop("storage_bytes", 0)),
        cache=CacheStats(**more),
    )


@pytest.mark.parametrize(
    ("stats", "situation", "limit", "cure"),
    [
        (stats_of(num_batches=2), CROWD, "too early", "later"),
        (stats_of(wait=0.02, cpu=1.0), CROWD, "training", "nothing to do"),
        (stats_of(cpu=1.0), Situation(num_workers=0, num_cores=4), "no workers", "num_workers=4"),
        (stats_of(cpu=0.9, idle=0.1), CROWD, "decoding", "num_workers=4"),
        (stats_of(cpu=0.9), Situation(num_workers=4, num_cores=4), "decoding", "all 4 cores are used"),
        (stats_of(cpu=0.9), Situation(num_workers=1, are_threads=True, num_cores=4), "decoding", "num_threads=4"),
        (stats_of(cpu=0.3, queue=0.7), Situation(num_workers=9, num_cores=4), "cores", "num_workers=4"),
        (stats_of(cpu=0.3, queue=0.7), Situation(num_workers=2, num_cores=4), "cores", "--cpus-per-task"),
        (stats_of(cpu=0.1, idle=0.9), CROWD, "hand-over", "prefetch=4"),
        (
            stats_of(blocked=0.9, fills=40, evictions=30, bytes_fetched=10**9, fill_seconds=5.0),
            Situation(num_workers=2, num_shards=10, budget_advice="Use resident_shards=16."),
            "cache budget",
            "Use resident_shards=16.",
        ),
        (
            stats_of(blocked=0.9, fills=10, evictions=3, bytes_fetched=10**9, fill_seconds=5.0),
            CROWD,  # each shard came once: leaving afterwards costs nothing
            "fetching",
            "disk_directory",
        ),
        (stats_of(blocked=0.9, bypasses=5), CROWD, "room in the cache", "larger budget"),
        (stats_of(blocked=0.9, waits=5), CROWD, "fetching", "parallel_requests"),
        (stats_of(blocked=0.9, storage_bytes=10**9), CROWD, "local storage", "faster disk"),
        (stats_of(blocked=0.9), Situation(are_threads=True, num_cores=4), "interpreter lock", "num_workers=4"),
        (stats_of(blocked=0.9), CROWD, "waiting", "swapping"),
    ],
)
def test_limit_is_named_with_a_cure(stats, situation, limit, cure):
    finding = find_limit(stats, situation)
    assert finding.limit == limit
    assert cure in finding.cure
    assert finding.why


def test_limit_of_a_loop_that_waits_names_the_share():
    finding = find_limit(stats_of(wait=0.4, cpu=0.9), CROWD)
    assert finding.share == 0.4
    assert "40 %" in finding.why


def test_more_names_copies_retries_checksums_and_bypasses():
    stats = stats_of(retries=2, refetches=1, bypasses=3, reason="no room", tier="direct")
    stats.num_copied_batches = 25
    found = {finding.limit: finding for finding in find_remarks(stats, "decoding")}
    assert set(found) == {"copies", "retries", "checksums", "bypasses"}
    assert found["copies"].share == 0.25
    assert "no room" in found["bypasses"].why


def test_more_is_empty_for_a_quiet_run_and_names_a_crowd():
    assert find_remarks(stats_of(cpu=0.9), "decoding") == []
    crowded = stats_of(cpu=0.7, queue=0.3)
    assert [finding.limit for finding in find_remarks(crowded, "decoding")] == ["crowded"]
    assert find_remarks(crowded, "cores") == [], "said already"


def test_report_of_a_run_as_text_and_json(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    with es.StreamingLoader(stream, num_workers=2) as loader:
        for _ in loader:
            pass
        report = loader.report()
        shown = io.StringIO()
        loader.print_performance_report(shown)
    assert [process.name for process in report.memory.processes] == ["main", "worker 0", "worker 1"]
    assert all(process.pss_bytes > 1 << 20 for process in report.memory.processes)
    assert report.memory.ring_bytes >= 8 * stream.job.layout.num_bytes
    values = json.loads(json.dumps(report.to_json()))
    assert values["stats"]["num_windows"] == 140
    assert values["limit"]["limit"] == report.limit.limit
    text = shown.getvalue()
    assert "2 worker processes" in text
    assert [line.split()[0] for line in text.splitlines()[1:] if "also" not in line] == [
        "limit",
        "do",
        "speed",
        "loop",
        "workers",
        "cache",
        "memory",
    ]


def test_report_says_which_frames_are_kept_and_why_not_more(aloha_shards, tmp_path):
    cache = es.CacheOptions(directory=str(tmp_path / "cache"), budget_bytes="1500KiB")
    options = {"batch_size": 10, "image_size": (48, 64), "cache": cache}
    lines = {}
    for decode in ("once", "auto", "per_read"):
        stream = es.EpisodeStream(aloha_shards, decode=decode, **options)
        with es.StreamingLoader(stream, num_workers=2) as loader:
            for _ in range(2):
                list(loader)
            rows = dict(line.split(maxsplit=1) for line in str(loader.report()).splitlines()[1:])
            values = json.loads(json.dumps(loader.report().to_json()))["stats"]["decoded"]
        lines[decode] = rows.get("decoded", "")
        assert values["num_taken"] + values["num_decoded"] == (2 * 140 * 2 if decode == "once" else 0)
    assert "frames copied" in lines["once"]
    assert "of 2.5 MiB; not all: they may take 1.5 MiB (the cache's budget" in lines["once"]
    assert lines["auto"].startswith("no frames are kept: they may take 1.5 MiB (the cache's budget")
    assert "raise budget_bytes" in lines["once"]
    assert lines["per_read"] == ""


def test_report_before_the_first_batch_and_after_close_is_no_error(aloha_shards):
    loader = es.StreamingLoader(es.EpisodeStream(aloha_shards, batch_size=10, features=["action"]), num_workers=1)
    assert loader.report().limit.limit == "too early"
    list(loader)
    loader.close()
    assert [process.name for process in loader.report().memory.processes] == ["main"]


def test_report_goes_to_standard_output_by_default(aloha_shards, capsys):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"])
    with es.StreamingLoader(stream, num_workers=0, num_threads=0) as loader:
        loader.print_performance_report()
    assert "no workers" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("files", "most"),
    [
        ({}, None),
        ({"job/cpu.max": "max 100000"}, None),
        ({"job/cpu.max": "100000 100000"}, 1),
        ({"job/cpu.max": "max 100000", "cpu.max": "50000 100000"}, 1),
        ({"cpu/job/cpu.cfs_quota_us": "100000", "cpu/job/cpu.cfs_period_us": "100000"}, 1),
        ({"cpu/job/cpu.cfs_quota_us": "-1", "cpu/job/cpu.cfs_period_us": "100000"}, None),
        ({"job/cpu.max": "torn"}, None),
    ],
)
def test_usable_cores_follow_the_control_groups(tmp_path, files, most):
    kernel = {
        "proc/self/cgroup": "4:cpu,cpuacct:/job\n0::/job\n",
        "proc/self/mountinfo": (
            "30 23 0:26 / /fs rw - cgroup2 cgroup2 rw\n31 23 0:27 / /fs/cpu rw - cgroup cgroup rw,cpu,cpuacct\n"
        ),
        **{f"fs/{name}": text for name, text in files.items()},
    }
    for name, text in kernel.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    found = num_usable_cores(System(tmp_path / "proc", tmp_path))
    everything = num_usable_cores(System(tmp_path / "nothing", tmp_path))
    assert found == (everything if most is None else most)


def test_report_says_how_a_local_disk_is_read_where_somebody_looked():
    words = "8.1 ms a read, 96.0 MiB/s in sequence: shards are read ahead whole"
    shown = CacheStats(tier="direct", reason="r", disk=words, bytes_ahead=3 << 30) + CacheStats(bytes_ahead=1 << 30)
    assert _disk(shown) == [f"{words} (4.0 GiB ahead)"]
    assert _disk(CacheStats() + shown) == [f"{words} (4.0 GiB ahead)"]
    assert _disk(CacheStats(disk="0.1 ms a read: read where and when needed")) == [
        "0.1 ms a read: read where and when needed"
    ]
    assert _disk(CacheStats()) == []
