"""RESULTS.md and results.png from the figures of a run."""

import textwrap
from pathlib import Path
from typing import Any

from peers.figures import OURS, Figures, costs, holds_raw, loaders, median, peers, rates, ratio, share_of_bound, times
from peers.plot import plot
from peers.verdicts import above_torch_mib, verdicts

_HEAD = """# Results

Written by `make bench` in {minutes} minutes. Every figure is the median of interleaved rounds of {seconds:g} s (how
many stands with each table), each in fresh processes. Timings of different runs are not comparable: read the ratios,
which are medians of the ratios of the same rounds. CPU is in seconds per 1,000 windows, of all processes. "Of bound"
is the windows/s as a share of what two processes do that only decode the same frames, or two threads that only copy
batches, whichever is less (only copying, where frames were decoded before). "First batch" runs from opening the
dataset; imports, which take some loaders seconds, are not in it. "Memory" is the processes' own pages and all shared
memory.

Machine: {cpu}, {memory_gib} GiB, Linux {kernel}, Python {python}, {date}. Load average meanwhile: {low} to {high}
(1 to 8 are the measured processes themselves; more are others' and widen every spread).
{versions}.

All loaders read the same episodes with batches of 32 and two workers a rank, and decode with simplejpeg; "default" is
its users' first program with its own decoder. Loaders of fixed samples have each window stored ready-made, frames and
actions included, in 16 files or more; epistream and h5py choose the window when they read. Each peer is there as such,
with 4 workers, and holding raw frames, which it then need not decode.

![windows/s of every loader and group](results.png)
"""
_NOTES = """
## Notes

Newer releases, on data sets of theirs with video that are streamed where they are, run in an environment of their
own: [LEROBOT.md](LEROBOT.md).

LeRobot 0.3.2 is the newest release that takes this version of torch; it reads its own format with pictures as PNG (its
other form, video, wants FFmpeg's libraries), so its row compares formats and decoders as much as loaders. There was no
GPU, so nothing here is about moving batches to one.
"""


def _heads(group: Figures) -> list[str]:
    heads = ["windows/s", "min-max"]
    if "bound" in group:
        heads += ["of bound", "bare CPU / CPU"]
    heads += ["CPU s/1000", "first batch s", "memory MiB", "of it shared"]
    if "torch alone" in group:
        heads += ["MiB per process above torch"]
    return [*heads, "times the best peer", "its CPU / CPU"]


def _cells(name: str, figures: Figures) -> list[str]:
    rows = figures[name]
    speeds = rates(rows)
    cells = [f"{median(rows, 'windows_per_s'):,.0f}", f"{min(speeds):,.0f}-{max(speeds):,.0f}"]
    if "bound" in figures:
        decodes = "once" not in name and not holds_raw(name) and median(figures["bound"], "cpu_s_per_1000") > 0
        bare = f"{ratio(costs(figures['bound']), costs(rows)):.2f}" if decodes else ""
        cells += [f"{share_of_bound(name, figures):.2f}", bare]
    cells += [
        f"{median(rows, 'cpu_s_per_1000'):.3f}",
        f"{median(rows, 'first_batch_s'):.2f}",
        f"{median(rows, 'memory_mib'):,.0f}",
        f"{median(rows, 'shared_mib'):,.0f}",
    ]
    if "torch alone" in figures:
        cells.append(f"{above_torch_mib(name, figures):.0f}")
    best = next(iter(peers(figures)), None)
    if best and name.startswith(OURS):
        return [
            *cells,
            f"{times(name, best, figures):.1f}",
            f"{ratio(costs(figures[best]), costs(rows)):.1f}",
        ]
    return [*cells, "", ""]


def table(name: str, result: dict[str, Any]) -> list[str]:
    """A group's rows, fastest first."""
    figures = result["figures"]
    lines = [f"\n## {name}\n", f"Rounds: {result['rounds']}." + _bound(figures) + _floor(figures) + "\n"]
    heads = _heads(figures)
    lines += ["| | " + " | ".join(heads) + " |", "| --- " + "| ---: " * len(heads) + "|"]
    lines += [f"| {one} | " + " | ".join(_cells(one, figures)) + " |" for one in loaders(figures)]
    return lines + [f"\n{one} gave no figures: {error}" for one, error in result["errors"].items()]


def _bound(figures: Figures) -> str:
    if "bound" not in figures:
        return ""
    bound = {key: median(figures["bound"], key) for key in ("decode", "copy")}
    terms = ", ".join(f"{key} {value:,.0f}" for key, value in bound.items() if value != float("inf"))
    return f" Bound in windows/s: {terms}."


def _floor(figures: Figures) -> str:
    if "torch alone" not in figures:
        return ""
    rows = figures["torch alone"]
    return f" {median(rows, 'num_processes'):.0f} processes with torch alone: {median(rows, 'own_mib'):,.0f} MiB."


def write_report(report: dict[str, Any], out: Path) -> None:
    """RESULTS.md and results.png."""
    machine = report["machine"]
    low, high = machine["load"]
    versions = textwrap.fill(", ".join(f"{name} {version}" for name, version in machine["versions"].items()), 118)
    times_ = {key: report[key] for key in ("seconds", "minutes")}
    lines = [_HEAD.format(**{**machine, "versions": versions}, **times_, low=low, high=high)]
    lines += verdicts(report)
    for name, result in report["groups"].items():
        if loaders(result["figures"]):
            lines += table(name, result)
    (out / "RESULTS.md").write_text("\n".join(lines) + "\n" + _NOTES)
    plot(report, out / "results.png")
