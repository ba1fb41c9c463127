"""Measures a stream's throughput in interleaved rounds beside the bound of this machine."""

import os
import platform
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import psutil
import simplejpeg
import torch

from epistream._version import __version__
from epistream.cache.options import Mode
from epistream.errors import OptionError
from epistream.loader.bound import Bound, measure_bound
from epistream.loader.loader import StreamingLoader
from epistream.loader.stream import EpisodeStream
from epistream.loader.window import Window


@dataclass(frozen=True)
class BenchOptions:
    """What to measure; the defaults are those of ``epistream bench``."""

    batch_size: int = 32
    obs: range = range(1)
    action: range = range(100)
    parallel: int = 2
    cache: Mode = "auto"
    rounds: int = 5
    seconds: float = 2.0

    def __post_init__(self) -> None:
        if min(self.batch_size, self.parallel, self.rounds) < 1 or self.seconds <= 0:
            raise OptionError(f"bench: {self}, wanted a batch size, parallelism, rounds and seconds above 0.")


@dataclass
class BenchRow:
    """One configuration: a figure per round."""

    name: str
    windows_per_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    first_batch_s: list[float] = field(default_factory=list)
    pss_bytes: int = 0

    @property
    def median(self) -> float:
        """Median windows/s."""
        return statistics.median(self.windows_per_s)

    def share_of(self, bound: "BenchRow") -> float:
        """Median over the rounds of this row's rate as a share of the bound's rate in the same round."""
        return statistics.median(a / b for a, b in zip(self.windows_per_s, bound.windows_per_s, strict=True))

    def cells(self, bound: "BenchRow") -> list[str]:
        """The row as text."""
        spread = f"{min(self.windows_per_s):,.0f}-{max(self.windows_per_s):,.0f}"
        cells = [self.name, f"{self.median:,.0f}", spread, f"{self.share_of(bound):.2f}"]
        cells.append(f"{statistics.median(self.cpu_s):.2f}" if self.cpu_s else "")
        cells.append(f"{statistics.median(self.first_batch_s) * 1000:,.0f} ms" if self.first_batch_s else "")
        cells.append(f"{self.pss_bytes / 2**20:,.0f} MiB" if self.pss_bytes else "")
        return cells


@dataclass(frozen=True)
class BenchResult:
    """All rows, the bound first."""

    title: str
    machine: str
    binding: str
    rows: list[BenchRow]

    @property
    def bound(self) -> BenchRow:
        """The bound's row."""
        return self.rows[0]

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        return {**asdict(self), "share_of_bound": {row.name: row.share_of(self.bound) for row in self.rows}}


def run_bench(url: str, options: BenchOptions, stream: EpisodeStream | None = None) -> BenchResult:
    """Measure the dataset at `url`, or a `stream` of it; takes about ``3 * rounds * seconds``."""
    stream = stream or EpisodeStream(
        url,
        batch_size=options.batch_size,
        window=Window(obs=options.obs, action=options.action),
        cache=options.cache,
        split=None,
    )
    number = options.parallel
    loaders = {
        f"{number} processes": StreamingLoader(stream, num_workers=number),
        f"{number} threads": StreamingLoader(stream, num_workers=0, num_threads=number),
    }
    rows = {name: BenchRow(name) for name in loaders}
    bounds: list[Bound] = []
    try:
        for _ in range(options.rounds):
            bounds.append(measure_bound(stream.job, number, options.seconds))
            for name, loader in loaders.items():
                _measure(loader, rows[name], options.seconds)
                # Workers of one configuration must not compete with the next.
                loader.close()
    finally:
        for loader in loaders.values():
            loader.close()
    middle = sorted(bounds, key=lambda bound: bound.windows_per_s)[len(bounds) // 2]
    head = BenchRow(f"bare {middle.binding}", [b.windows_per_s for b in bounds], [b.decode_cpu_s for b in bounds])
    return BenchResult(_title(stream, options), _machine(), middle.binding, [head, *rows.values()])


def _measure(loader: StreamingLoader, row: BenchRow, seconds: float) -> None:
    began = time.perf_counter()
    batches = _endless(loader)
    next(batches)
    row.first_batch_s.append(time.perf_counter() - began)
    # The ring's pages are touched for the first time while it fills; that is start-up, not throughput.
    for _ in range(4 * len(psutil.Process().children()) + 8):
        next(batches)
    num_windows, cpu_before, began = 0, _cpu_s(), time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds:
        num_windows += len(next(batches)["step_index"])
    row.windows_per_s.append(num_windows / elapsed)
    row.cpu_s.append((_cpu_s() - cpu_before) / num_windows * 1000)
    row.pss_bytes = max(row.pss_bytes, _pss_bytes())


def _endless(loader: StreamingLoader) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


def _tree() -> list[psutil.Process]:
    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def _cpu_s() -> float:
    times = [process.cpu_times() for process in _tree()]
    return sum(t.user + t.system for t in times)


def _pss_bytes() -> int:
    return sum(process.memory_full_info().pss for process in _tree())


def _title(stream: EpisodeStream, options: BenchOptions) -> str:
    job = stream.job
    return (
        f"{job.dataset.url}: {stream.num_windows:,} windows, batch {job.batch_size} "
        f"({job.layout.num_bytes / 2**20:,.1f} MiB), cache {job.cache.options.mode}"
    )


def _machine() -> str:
    load = os.getloadavg()[0]
    versions = f"epistream {__version__}, torch {torch.__version__}, simplejpeg {simplejpeg.__version__}"
    return (
        f"{os.cpu_count()} cores {platform.machine()}, load {load:.1f}, Python {platform.python_version()}, {versions}"
    )
