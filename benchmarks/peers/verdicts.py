"""What was wanted of epistream, beside what a run found."""

from collections.abc import Callable
from typing import Any

from peers.figures import (
    Figures,
    any_of,
    bound_rates,
    costs,
    holds_raw,
    median,
    ours,
    peers,
    rates,
    ratio,
    share_of_bound,
    thriftiest_peer,
    times,
)

_FULL = "480x640-jpeg"
_ONCE = "epistream, decoded once"
_READS = ("epistream, processes", "epistream, threads")

Line = tuple[str, float, float]  # what, wanted at least, found


def _decodes(name: str) -> bool:
    return not holds_raw(name)


def _of_bound(figures: Figures) -> list[Line]:
    lines = [
        (f"480x640 JPEG, {name.partition(', ')[2]}: share of the decode bound", 0.95, share_of_bound(name, figures))
        for name in _READS
        if name in figures
    ]
    if _ONCE in figures:
        lines.append(("480x640 JPEG decoded once: share of the copy bound", 0.8, share_of_bound(_ONCE, figures)))
    return lines


def _against(figures: Figures, names: list[str], kind: Callable[[str], bool], what: str, least: float) -> list[Line]:
    """The fastest of our forms against the fastest peer of a kind, and what it would be for a loader at the bound."""
    mine, best = [name for name in ours(figures) if name in names], peers(figures, kind)
    if not mine or not best:
        return []
    who = f"{mine[0].partition(', ')[2]} against {best[0]}"
    if "bound" in figures:
        at_bound = ratio(bound_rates(figures, with_decode=_ONCE not in names), rates(figures[best[0]]))
        who += f"; at the bound {at_bound:.1f}"
    return [(f"{what} ({who})", least, times(mine[0], best[0], figures))]


def _thrift(report: dict[str, Any]) -> list[Line]:
    lines = []
    for group, result in report["groups"].items():
        figures = result["figures"]
        best = thriftiest_peer(figures, _decodes)
        reads = [name for name in _READS if name in figures]
        if "bound" in figures and best and reads:
            mine = max(reads, key=lambda name: median(figures[name], "cpu_s_per_1000"))
            lines.append(
                (f"{group}: CPU of the thriftiest peer / ours", 2.0, ratio(costs(figures[best]), costs(figures[mine])))
            )
    return lines


def above_torch_mib(name: str, figures: Figures) -> float:
    """Own memory per process beyond that of one that only imports torch; cache and ring are shared memory."""
    rows, floor = figures[name], figures["torch alone"]
    own = median(rows, "own_mib") / median(rows, "num_processes")
    return own - median(floor, "own_mib") / median(floor, "num_processes")


def verdicts(report: dict[str, Any]) -> list[str]:
    """A table of wanted and found."""
    full = any_of(report, _FULL)
    reads = list(_READS)
    lines: list[Line] = []
    if "bound" in full:
        lines += _of_bound(full)
    lines += _against(full, reads, _decodes, "480x640 JPEG: times the best peer", 4)
    lines += _against(full, [_ONCE], _decodes, "480x640 decoded once: times the best peer that decodes", 18)
    lines += _against(full, [_ONCE], holds_raw, "480x640 decoded once: times the best peer with raw frames", 12)
    small = any_of(report, "128x128-jpeg")
    lines += _against(small, reads, _decodes, "128x128 JPEG: times the best peer", 5)
    lines += _against(small, [_ONCE], _decodes, "128x128 JPEG decoded once, the default: times the best peer", 5)
    for group, least in (("128x128-raw", 5.0), ("low-dimensional", 50.0)):
        lines += _against(any_of(report, group), reads, _decodes, f"{group}: times the best peer", least)
    lines += _thrift(report)
    rows = [
        f"| {what} | {least:g} | {found:.2f} | {'yes' if found >= least else 'no'} |" for what, least, found in lines
    ]
    for group, result in report["groups"].items():
        figures = result["figures"]
        if "torch alone" in figures:
            for name in (name for name in ours(figures)):
                found = above_torch_mib(name, figures)
                rows.append(
                    f"| {group}, {name.partition(', ')[2]}: MiB per process above torch, cache and ring | at most 150 "
                    f"| {found:.0f} | {'yes' if found <= 150 else 'no'} |"
                )
    return ["\n## Wanted and found\n", "| | wanted | in this run | |", "| --- | ---: | ---: | --- |", *rows]
