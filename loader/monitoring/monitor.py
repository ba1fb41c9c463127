"""Watching a running loader: a log line per interval, and a Prometheus endpoint, each on request."""

import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from epistream.errors import OptionError
from epistream.loader.monitoring.asked import tell
from epistream.loader.monitoring.report import PerformanceReport, worker_shares
from epistream.loader.monitoring.stats import LoaderStats
from epistream.options import Range, Seconds, check
from epistream.units import size_text

if TYPE_CHECKING:
    from prometheus_client.core import Metric

logger = logging.getLogger("epistream.loader.monitor")  # the name that users were told, wherever the module lies

_CACHE_EVENTS = ("hits", "fills", "waits", "evictions", "bypasses", "direct", "disk_hits", "retries", "refetches")


@dataclass(frozen=True)
class MonitorOptions:
    """What a loader tells while it runs; nothing by default.

    Args:
        log_every_s: seconds between lines in the log; none if None. They go to ``epistream.loader.monitor``, at level
            INFO, whatever the root's level; to standard error where logging has no handlers.
        metrics_port: TCP port for Prometheus, plus the rank's number on its node; none if None. So ranks do not
            collide. Needs ``pip install epistream[metrics]``.
        metrics_host: address that the metrics are served at. ``"0.0.0.0"`` lets other machines ask.

    Raises:
        OptionError: numbers that cannot work.
    """

    log_every_s: Seconds | None = None
    metrics_port: Annotated[int, Range(ge=1, le=65535)] | None = None
    metrics_host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        check(self)


class Monitor:
    """Serves one loader. It starts no thread before `start`, which the loader calls when its workers are forked.

    Args:
        options: what to tell.
        stats: takes a snapshot; from any thread.
        report: makes a report; from any thread.
    """

    def __init__(
        self,
        options: MonitorOptions,
        stats: Callable[[], LoaderStats],
        report: Callable[[], PerformanceReport],
    ) -> None:
        self._options = options
        self._rank = 0
        self._stats, self._report = stats, report
        self._logged_s = time.monotonic()
        self._before = LoaderStats()
        self._server: Any = None
        self._server_pid = 0
        self._is_started = False

    def start(self, rank: int, local_rank: int) -> None:
        """Begin, unless it has begun.

        Args:
            rank: of the job, for labels and lines.
            local_rank: of the node, added to the port.

        Raises:
            OptionError: prometheus_client is not installed, or the port is taken.
        """
        if self._is_started:
            return
        self._is_started, self._rank = True, rank
        self._logged_s, self._before = time.monotonic(), self._stats()
        if self._options.metrics_port is not None:
            self._server = _serve(
                self._options.metrics_host,
                self._options.metrics_port + local_rank,
                Metrics(self._rank, self._report),
            )
            self._server_pid = os.getpid()

    def tick(self) -> None:
        """A batch was handed out: write a line if it is time."""
        every_s = self._options.log_every_s
        if every_s is None:
            return
        now = time.monotonic()
        if now - self._logged_s < every_s:
            return
        stats = self._stats()
        tell(logger, log_line(self._rank, stats.since(self._before)))
        self._logged_s, self._before = now, stats

    def stop(self) -> None:
        """Close the endpoint."""
        server, self._server, self._is_started = self._server, None, False
        if server is not None and self._server_pid == os.getpid():  # a forked child has no thread that would answer
            server.shutdown()
            server.server_close()


def log_line(rank: int, stats: LoaderStats) -> str:
    """An interval in one line."""
    cache = stats.cache
    events = " ".join(f"{name}={getattr(cache, name)}" for name in _CACHE_EVENTS if getattr(cache, name))
    fetched = f" fetched={size_text(cache.bytes_fetched)}" if cache.bytes_fetched else ""
    return (
        f"rank {rank}: {stats.windows_per_s:,.0f} windows/s over {stats.elapsed_s:.1f} s, "
        f"data wait {stats.data_wait_share * 100:.1f} %; workers: {worker_shares(stats)}; "
        f"cache {cache.tier or 'unused'} {events}{fetched}".rstrip()
    )


class Metrics:
    """A collector for prometheus_client: register it in a registry of your own to serve it beside your metrics.

    Args:
        rank: label of every sample.
        report: where the figures come from; asked once for every scrape.
    """

    def __init__(self, rank: int, report: Callable[[], PerformanceReport]) -> None:
        self._rank = str(rank)
        self._report = report

    def describe(self) -> "Iterable[Metric]":
        """Nothing is asked at registration: a report then would measure memory for no reader."""
        return []

    def collect(self) -> "Iterable[Metric]":
        """The figures now."""
        from prometheus_client.core import CounterMetricFamily as Counter
        from prometheus_client.core import GaugeMetricFamily as Gauge

        report = self._report()
        stats, cache, memory = report.stats, report.stats.cache, report.memory
        yield self._metric(Counter, "windows", "Windows handed out", stats.num_windows)
        yield self._metric(Counter, "batches", "Batches handed out", stats.num_batches)
        yield self._metric(Counter, "copied_batches", "Batches copied out of the ring", stats.num_copied_batches)
        yield self._metric(Counter, "loop_seconds", "Time inside the training loop", stats.elapsed_s)
        yield self._metric(Counter, "data_wait_seconds", "Time the loop waited for data", stats.data_wait_s)
        yield self._metric(Counter, "worker_seconds", "Time of all workers", stats.worker_seconds, "state")
        events = {name: getattr(cache, name) for name in _CACHE_EVENTS}
        yield self._metric(Counter, "cache_events", "What the cache did", events, "event")
        yield self._metric(Counter, "cache_fetched_bytes", "Bytes that fills brought", cache.bytes_fetched)
        yield self._metric(Gauge, "cache_bytes", "Bytes in the node's shared-memory cache", memory.cache_bytes)
        yield self._metric(Gauge, "ring_bytes", "Size of the batch ring", memory.ring_bytes)
        pss = {process.name: process.pss_bytes for process in memory.processes}
        yield self._metric(Gauge, "process_pss_bytes", "Proportional set size", pss, "process")

    def _metric(self, kind: Any, name: str, text: str, values: float | Mapping[str, float], *label: str) -> "Metric":
        family = kind(f"epistream_{name}", text, labels=("rank", *label))
        if isinstance(values, Mapping):
            for key, value in values.items():
                family.add_metric((self._rank, key), value)
        else:
            family.add_metric((self._rank,), values)
        metric: Metric = family
        return metric


def _serve(host: str, port: int, metrics: Metrics) -> Any:
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        raise OptionError(
            "metrics_port: prometheus_client is not installed. Run: pip install 'epistream[metrics]'"
        ) from None
    registry = CollectorRegistry()
    registry.register(metrics)
    try:
        server, _ = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        raise OptionError(
            f"metrics_port: {host}:{port}: {error.strerror}. Choose another port; each rank of a node takes the port "
            "plus its number on the node."
        ) from error
    with suppress(AttributeError):
        tell(logger, f"Metrics at http://{host}:{server.server_port}/metrics")
    return server
