"""Measures a stream's throughput in interleaved rounds beside the bound of this machine."""

import os
import platform
import statistics
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import simplejpeg
import torch

from epistream._version import __version__
from epistream.loader.frames.frames import Decode
from epistream.loader.loader import StreamingLoader
from epistream.loader.measuring.bench_options import BenchOptions
from epistream.loader.measuring.bound import Bound, measure_bound
from epistream.loader.measuring.rates import keep_decoded, run_steadily
from epistream.loader.monitoring.memory_use import measure_memory
from epistream.loader.order.window import Window
from epistream.loader.reading.job import ReadJob
from epistream.loader.stream import EpisodeStream
from epistream.units import size_text

# Decoding every episode beforehand is given up after this.
_WARM_S = 300.0


@dataclass
class BenchRow:
    """One configuration: a figure per round. `bound` names the row whose rates it is compared with."""

    name: str
    windows_per_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    first_batch_s: list[float] = field(default_factory=list)
    pss_bytes: int = 0
    shm_bytes: int = 0
    bound: str = ""

    @property
    def median(self) -> float:
        """Median windows/s."""
        return statistics.median(self.windows_per_s)

    def share_of(self, bound: "BenchRow") -> float:
        """Median over the rounds of this row's rate as a share of the bound's rate in the same round."""
        return statistics.median(a / b for a, b in zip(self.windows_per_s, bound.windows_per_s, strict=True))

    def cells(self, bound: "BenchRow") -> list[str]:
        """The row as text: 7 columns that fit a terminal of 80."""
        spread = f"{_short(min(self.windows_per_s))}-{_short(max(self.windows_per_s))}"
        cells = [self.name, f"{self.median:,.0f}", spread, f"{self.share_of(bound):.2f}"]
        cells.append(f"{statistics.median(self.cpu_s):.3f}" if self.cpu_s else "")
        cells.append(f"{statistics.median(self.first_batch_s) * 1000:,.0f}" if self.first_batch_s else "")
        cells.append(f"{self.pss_bytes / 2**20:,.0f}" if self.pss_bytes else "")
        return cells


@dataclass(frozen=True)
class BenchResult:
    """All rows, each bound before the rows that are compared with it; `binding` is the term of the first."""

    title: str
    machine: str
    binding: str
    rows: list[BenchRow]

    def bound_of(self, row: BenchRow) -> BenchRow:
        """The row that another one is compared with: itself, for a bound."""
        return next((other for other in self.rows if other.name == row.bound), row)

    def to_json(self) -> dict[str, Any]:
        """All figures as plain values."""
        shares = {row.name: row.share_of(self.bound_of(row)) for row in self.rows}
        return {**asdict(self), "share_of_bound": shares}


def run_bench(
    url: str,
    options: BenchOptions,
    stream: EpisodeStream | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> BenchResult:
    """Measure the dataset at `url`, or a `stream` of it.

    It takes about ``rounds * seconds`` for each row, and the time until every frame is kept decoded.
    `storage_options` are for fsspec, where there is no `stream` that has them.
    """
    given, open_stream = stream, partial(_stream, url, options, storage_options)
    stream = given or open_stream("per_read")
    streams = {"": stream}
    if given is None and options.once and fits_decoded(stream.job):
        streams[", decoded"] = open_stream("once")
    title, machine = _title(stream), _machine()
    plans = [_Plan(number, suffix, streams[suffix]) for number in options.numbers for suffix in streams]
    # The last one out removes the cache's directory: what was decoded must outlive each loader.
    with open_stream("once").job.cache if len(streams) > 1 else nullcontext() as holder:
        if holder is not None:
            holder.budget()
        for plan in plans:
            if plan.suffix:
                plan.warm()
        for _ in range(options.rounds):
            for plan in plans:
                plan.run(options.seconds)
    rows = [row for plan in plans for row in plan.rows]
    return BenchResult(title, machine, binding=rows[0].name.split()[1], rows=rows)


class _Plan:
    """A number of workers on one stream: the bound, and the loader with processes and with threads."""

    def __init__(self, number: int, suffix: str, stream: EpisodeStream) -> None:
        self.suffix = suffix
        self._number, self._stream = number, stream
        self._bounds: list[Bound] = []
        self._loaded = [BenchRow(f"{number} {kind}{suffix}") for kind in ("processes", "threads")]

    @property
    def rows(self) -> list[BenchRow]:
        """The bound's row and the loader's two; for videos, between them, decoding in the other order."""
        middle = sorted(self._bounds, key=lambda bound: bound.windows_per_s)[len(self._bounds) // 2]
        terms = ["copy" if self.suffix else middle.binding]
        if middle.in_order is not None and terms == ["decode"]:
            # Frames that are kept are decoded in order, whatever the order of the windows.
            terms = ["in_order", "decode"] if self._stream.job.part.frames.decode == "once" else ["decode", "in_order"]
        named = {"decode": "decode at random", "in_order": "decode in order"} if len(terms) > 1 else {}
        bounds = []
        for term in terms:
            name = f"bare {named.get(term, term)} x {self._number}"
            rates, cpu_s = ([getattr(bound, figure) for bound in self._bounds] for figure in (term, f"{term}_cpu_s"))
            bounds.append(BenchRow(name, rates, cpu_s, bound=name))
        for row in self._loaded:
            row.bound = bounds[0].name
        return [*bounds, *self._loaded]

    def run(self, seconds: float) -> None:
        """One round. Workers of one configuration never compete with those of the next."""
        self._bounds.append(measure_bound(self._stream.job, self._number, seconds))
        kinds = ((self._number, 0), (0, self._number))
        for row, (num_workers, num_threads) in zip(self._loaded, kinds, strict=True):
            with StreamingLoader(self._stream, num_workers=num_workers, num_threads=num_threads) as loader:
                run = run_steadily(loader, 4 * self._number + 8, seconds)
                row.first_batch_s.append(run.first_batch_s)
                row.windows_per_s.append(run.windows_per_s)
                row.cpu_s.append(run.cpu_s / run.stats.num_windows * 1000)
                memory = measure_memory(loader.worker_pids, 0, self._stream.job.cache.options)
                row.pss_bytes = max(row.pss_bytes, memory.pss_bytes)
                row.shm_bytes = max(row.shm_bytes, memory.cache_bytes)

    def warm(self) -> None:
        """Let every frame be decoded."""
        with StreamingLoader(self._stream, num_workers=self._number) as loader:
            keep_decoded(loader, _WARM_S)


def fits_decoded(job: ReadJob) -> bool:
    """Whether there are frames to decode, and all of them would fit the cache's budget now."""
    part = replace(job.part, frames=replace(job.part.frames, decode="once"))
    plan = replace(job, parts=(part,)).reader_options[0].decoded
    budget = job.cache.budget() if plan is not None and plan.num_bytes else None
    job.cache.close()
    return plan is not None and budget is not None and plan.num_bytes + plan.source_bytes <= budget.bytes


def _stream(
    url: str, options: BenchOptions, storage_options: Mapping[str, Any] | None, decode: Decode
) -> EpisodeStream:
    return EpisodeStream(
        url,
        features=options.features or None,
        batch_size=options.batch_size,
        window=Window(obs=options.obs, action=options.action),
        cache=options.cache,
        split=None,
        decode=decode,
        storage_options=storage_options,
        layout=options.layout,
        allow_outside_files=options.allow_outside_files,
    )


def _short(rate: float) -> str:
    return f"{rate:,.0f}" if rate < 10_000 else f"{rate / 1000:,.0f}k"


def _title(stream: EpisodeStream) -> str:
    job = stream.job
    return (
        f"{job.dataset.url}: {stream.num_windows:,} windows, batch {job.batch_size} "
        f"({size_text(job.layout.num_bytes)}), cache {job.cache.options.mode}"
    )


def _machine() -> str:
    load = os.getloadavg()[0]
    versions = f"epistream {__version__}, torch {torch.__version__}, simplejpeg {simplejpeg.__version__}"
    return (
        f"{os.cpu_count()} cores {platform.machine()}, load {load:.1f}, Python {platform.python_version()}, {versions}"
    )
