"""Medians, and ratios of the same rounds, of a group's figures."""

import statistics
from collections.abc import Callable
from typing import Any

OURS = "epistream"
NOT_LOADERS = ("bound", "torch alone")

Rows = list[dict[str, float]]
Figures = dict[str, Rows]


def median(rows: Rows, key: str) -> float:
    """Over the rounds."""
    return statistics.median(row[key] for row in rows)


def ratio(a: list[float], b: list[float]) -> float:
    """Median of the ratios of the same rounds."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def rates(rows: Rows) -> list[float]:
    """Windows per second of each round."""
    return [row["windows_per_s"] for row in rows]


def costs(rows: Rows) -> list[float]:
    """CPU seconds per 1,000 windows of each round."""
    return [max(row["cpu_s_per_1000"], 1e-6) for row in rows]


def bound_rates(figures: Figures, *, with_decode: bool) -> list[float]:
    """The binding term of each round."""
    return [min(row["decode"], row["copy"]) if with_decode else row["copy"] for row in figures["bound"]]


def loaders(figures: Figures) -> list[str]:
    """Fastest first."""
    names = [name for name in figures if name not in NOT_LOADERS]
    return sorted(names, key=lambda name: -median(figures[name], "windows_per_s"))


def ours(figures: Figures) -> list[str]:
    """Our forms, fastest first."""
    return [name for name in loaders(figures) if name.startswith(OURS)]


def peers(figures: Figures, wanted: Callable[[str], bool] = lambda name: True) -> list[str]:
    """The others, fastest first."""
    return [name for name in loaders(figures) if not name.startswith(OURS) and wanted(name)]


def holds_raw(name: str) -> bool:
    """Whether a contender of a JPEG scenario has its frames decoded beforehand."""
    return name.endswith("raw frames")


def thriftiest_peer(figures: Figures, wanted: Callable[[str], bool] = lambda name: True) -> str | None:
    """Which of the others takes the least CPU time."""
    return min(peers(figures, wanted), key=lambda name: median(figures[name], "cpu_s_per_1000"), default=None)


def share_of_bound(name: str, figures: Figures) -> float:
    """Of the smaller term, or of copying where frames were decoded before."""
    decodes = "once" not in name and not holds_raw(name)
    return ratio(rates(figures[name]), bound_rates(figures, with_decode=decodes))


def times(name: str, other: str, figures: Figures) -> float:
    """How many times as fast one is as the other."""
    return ratio(rates(figures[name]), rates(figures[other]))


def any_of(report: dict[str, Any], group: str) -> Figures:
    """A group's figures, none if it was not measured."""
    found: Figures = report["groups"].get(group, {}).get("figures", {})
    return found
