"""results.png: windows/s of every loader, one panel a group."""

from pathlib import Path
from typing import Any

from peers.figures import OURS, bound_rates, holds_raw, loaders, median

_OURS, _PEER, _RAW, _BOUND = "#1f6fb4", "#a9b1ba", "#cfd4d9", "#c0392b"


def plot(report: dict[str, Any], path: Path) -> None:
    """Bars from zero with their numbers; the bound as a line where it is near enough to be seen."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    groups = {name: result["figures"] for name, result in report["groups"].items() if loaders(result["figures"])}
    columns = 2
    rows = -(-len(groups) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(13, 0.6 + 3.6 * rows), squeeze=False, layout="constrained")
    for axis, (name, figures) in zip(axes.flat, groups.items(), strict=False):
        _panel(axis, name, figures)
    for axis in list(axes.flat)[len(groups) :]:
        axis.axis("off")
    machine = report["machine"]
    figure.suptitle(f"windows/s, more is better (medians; {machine['cpu']}, {machine['date']})", fontsize=12)
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _panel(axis: Any, name: str, figures: dict[str, Any]) -> None:
    names = loaders(figures)[::-1]
    values = [median(figures[one], "windows_per_s") for one in names]
    colours = [_OURS if one.startswith(OURS) else _RAW if holds_raw(one) else _PEER for one in names]
    bars = axis.barh(names, values, color=colours, height=0.72)
    axis.bar_label(bars, [f"{value:,.0f}" for value in values], padding=4, fontsize=9)
    title = name
    if "bound" in figures:
        title += _bound(axis, figures, max(values))
    axis.set_xlim(0, max(values) * 1.18)
    axis.set_title(title, fontsize=11, loc="left")
    axis.tick_params(labelsize=9)
    axis.xaxis.set_major_formatter("{x:,.0f}")
    axis.xaxis.set_major_locator(_five_ticks())
    axis.spines[["top", "right"]].set_visible(False)


def _bound(axis: Any, figures: dict[str, Any], largest: float) -> str:
    """Draw the bounds that fit; say all of them."""
    terms = {"copy": _middle(bound_rates(figures, with_decode=False))}
    decode = _middle([row["decode"] for row in figures["bound"]])
    if decode != float("inf"):
        terms = {"decode": decode, **terms}
    for term, value in terms.items():
        if value < largest * 1.15:
            axis.axvline(value, color=_BOUND, linewidth=1.3, linestyle="-" if term == "decode" else "--")
    return "    bound: " + ", ".join(f"{term} {value:,.0f}" for term, value in terms.items())


def _middle(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def _five_ticks() -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(5)
