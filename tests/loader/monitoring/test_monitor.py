"""Watching a run: lines at their interval, and metrics that Prometheus can read."""

import logging
import re
import socket
import sys
import urllib.request

import pytest

import epistream as es
from epistream.cache.stats import CacheStats
from epistream.errors import OptionError
from epistream.loader.monitoring import monitor as monitor_module
from epistream.loader.monitoring.monitor import Monitor, MonitorOptions, log_line
from epistream.loader.monitoring.stats import LoaderStats
from epistream.loader.workers.thread_time import ThreadTime


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def stream_of(shards) -> es.EpisodeStream:
    return es.EpisodeStream(shards, batch_size=10, features=["action"])


@pytest.mark.parametrize(
    "options",
    [
        {"log_every_s": 0},
        {"log_every_s": -1.0},
        {"log_every_s": float("nan")},
        {"log_every_s": float("inf")},
        {"metrics_port": 0},
        {"metrics_port": 65536},
    ],
)
def test_monitor_options_that_cannot_work_are_refused(options):
    with pytest.raises(OptionError, match=f"{next(iter(options))}: .*wanted"):
        MonitorOptions(**options)


def test_monitor_line_is_written_once_an_interval_and_tells_the_interval(monkeypatch, caplog):
    now = 100.0
    monkeypatch.setattr(monitor_module.time, "monotonic", lambda: now)
    snapshots = [LoaderStats(num_windows=n, elapsed_s=s) for n, s in ((0, 0.0), (50, 5.0), (80, 15.0))]
    taken = iter(snapshots)
    monitor = Monitor(MonitorOptions(log_every_s=5.0), lambda: next(taken), lambda: None)
    caplog.set_level(logging.INFO, logger="epistream.loader.monitor")
    monitor.start(3, 1)
    for now in (102.0, 104.9, 105.0, 106.0, 110.5):  # noqa: B007 - the patched clock reads it
        monitor.tick()
    rates = [re.match(r"rank 3: ([\d,]+) windows/s over ([\d.]+) s", message).groups() for message in caplog.messages]
    assert rates == [("10", "5.0"), ("3", "10.0")]


def test_monitor_line_names_what_happened_and_nothing_else():
    stats = LoaderStats(
        num_windows=40,
        elapsed_s=4.0,
        data_wait_s=1.0,
        worker_busy_s=6.0,
        worker_idle_s=2.0,
        effort=ThreadTime(4.0, 1.0, 0),
        cache=CacheStats(hits=3, fills=2, bytes_fetched=5_000_000, tier="shm"),
    )
    assert log_line(0, stats) == (
        "rank 0: 10 windows/s over 4.0 s, data wait 25.0 %; workers: decode and copy 50 %, wait for a core 12 %, wait "
        "for bytes or locks 12 %, wait for a free batch 25 %; cache shm hits=3 fills=2 fetched=4.8 MiB"
    )


def test_loader_without_a_monitor_logs_and_serves_nothing(aloha_shards, caplog):
    caplog.set_level(logging.INFO, logger="epistream.loader.monitor")
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=1) as loader:
        list(loader)
    assert caplog.messages == []


@pytest.mark.parametrize("way", [{"num_workers": 2}, {"num_workers": 0, "num_threads": 1}])
def test_loader_serves_metrics_while_it_runs_and_frees_the_port(aloha_shards, free_port, way):
    options = MonitorOptions(metrics_port=free_port)
    for _ in range(2):
        with es.StreamingLoader(stream_of(aloha_shards), monitor=options, **way) as loader:
            for _ in loader:
                pass
            with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/metrics", timeout=30) as answer:
                text = answer.read().decode()
        samples = dict(re.findall(r"^(epistream_\w+(?:\{[^}]*\})?) ([\d.e+-]+)$", text, re.MULTILINE))
        assert samples['epistream_windows_total{rank="0"}'] == "140.0"
        assert samples['epistream_batches_total{rank="0"}'] == "14.0"
        assert float(samples['epistream_worker_seconds_total{rank="0",state="cpu"}']) >= 0
        assert float(samples['epistream_process_pss_bytes{process="main",rank="0"}']) > 1e6


def test_metrics_of_a_second_rank_are_one_port_further(aloha_shards, free_port):
    stream = es.EpisodeStream(aloha_shards, batch_size=10, features=["action"], world=es.World.of(1, 2, 2))
    options = MonitorOptions(metrics_port=free_port - 1)
    with es.StreamingLoader(stream, num_workers=1, monitor=options) as loader:
        list(loader)
        with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/metrics", timeout=30) as answer:
            assert 'epistream_windows_total{rank="1"} 70.0' in answer.read().decode()


def test_metrics_port_that_is_taken_is_an_error_that_names_it(aloha_shards):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        loader = es.StreamingLoader(stream_of(aloha_shards), num_workers=1, monitor=MonitorOptions(metrics_port=port))
        with loader, pytest.raises(OptionError, match=rf"127.0.0.1:{port}: .*Choose another port"):
            next(iter(loader))


def test_metrics_without_the_library_say_what_to_install(aloha_shards, monkeypatch, free_port):
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    options = MonitorOptions(metrics_port=free_port)
    loader = es.StreamingLoader(stream_of(aloha_shards), num_workers=1, monitor=options)
    with loader, pytest.raises(OptionError, match=r"pip install 'epistream\[metrics\]'"):
        next(iter(loader))
