"""RESULTS.md and results.png from the figures of a run."""

import statistics
from pathlib import Path
from typing import Any

OURS = "epistream"
_HEAD = """# Results

Written by `make bench`; every figure is the median of {rounds} interleaved rounds of {seconds:g} s, each in a fresh
process, files in the page cache. Timings of different runs are not comparable: read the ratios. "Of bound" is the
windows/s as a share of what two processes do that only decode the same frames (JPEG), or only copy batches (raw),
measured in the same round; the share is the median of the rounds' shares. CPU is in seconds per 1,000 windows, of all
processes; "bare CPU / CPU" is the CPU time of only decoding as a share of it. Where others load the machine, trust the
CPU columns.

Machine: {cpu}, {memory_gib} GiB, Linux {kernel}, Python {python}, {date}. Load average while it ran: {low} to {high}
(1 or 2 are the measured processes themselves; more are others' and widen every spread).
{versions}.

All loaders read the same bytes with batches of 32 and two workers, and decode with simplejpeg; "default" is its users'
first program with its own decoder. Loaders of fixed samples have each window stored ready-made, frames and actions
included; epistream and h5py choose the window when they read.
"""


def median(rows: list[dict[str, float]], key: str) -> float:
    return statistics.median(row[key] for row in rows)


def ratio(a: list[float], b: list[float]) -> float:
    """Median of the ratios of the same rounds."""
    return statistics.median(x / y for x, y in zip(a, b, strict=True))


def rates(rows: list[dict[str, float]]) -> list[float]:
    return [row["windows_per_s"] for row in rows]


def costs(rows: list[dict[str, float]]) -> list[float]:
    return [max(row["cpu_s_per_1000"], 1e-6) for row in rows]


def bound_rates(figures: dict[str, Any], with_decode: bool = True) -> list[float]:
    """The binding term of each round."""
    return [min(row["decode"] if with_decode else row["copy"], row["copy"]) for row in figures["bound"]]


def peers_of(figures: dict[str, Any]) -> dict[str, Any]:
    return {name: rows for name, rows in figures.items() if name != "bound" and not name.startswith(OURS)}


def best_peer(figures: dict[str, Any]) -> str | None:
    peers = peers_of(figures)
    return max(peers, key=lambda name: median(peers[name], "windows_per_s")) if peers else None


def table(scenario: str, result: dict[str, Any]) -> list[str]:
    """A scenario's rows, fastest first."""
    figures = result["figures"]
    lines = [f"\n## {scenario}\n"]
    if "bound" in figures:
        bound = {key: median(figures["bound"], key) for key in ("decode", "copy")}
        terms = ", ".join(f"{key} {value:,.0f}" for key, value in bound.items() if value != float("inf"))
        lines.append(f"Bound in windows/s: {terms}.\n")
    lines += [
        "| | windows/s | min-max | of bound | CPU s/1000 | bare CPU / CPU | PSS MiB | first batch s "
        "| times the best peer | its CPU / CPU |",
        "| --- " + "| ---: " * 9 + "|",
    ]
    best = best_peer(figures)
    order = sorted((n for n in figures if n != "bound"), key=lambda n: -median(figures[n], "windows_per_s"))
    for name in order:
        rows = figures[name]
        speeds = rates(rows)
        share = ""
        if "bound" in figures:
            share = f"{ratio(speeds, bound_rates(figures, 'once' not in name)):.2f}"
        times = thrift = cpu = ""
        if best and name.startswith(OURS):
            times = f"{ratio(speeds, rates(figures[best])):.1f}"
            thrift = f"{ratio(costs(figures[best]), costs(rows)):.1f}"
        if "bound" in figures and "once" not in name and median(figures["bound"], "cpu_s_per_1000"):
            cpu = f"{ratio(costs(figures['bound']), costs(rows)):.2f}"
        lines.append(
            f"| {name} | {median(rows, 'windows_per_s'):,.0f} | {min(speeds):,.0f}-{max(speeds):,.0f} | {share} "
            f"| {median(rows, 'cpu_s_per_1000'):.3f} | {cpu} | {median(rows, 'pss_mib'):,.0f} "
            f"| {median(rows, 'first_batch_s'):.1f} | {times} | {thrift} |"
        )
    lines += [f"\n{name} gave no figures: {error}" for name, error in result["errors"].items()]
    return lines


def write_report(report: dict[str, Any], out: Path) -> None:
    """RESULTS.md, and results.png if matplotlib is there."""
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    low, high = machine["load"]
    head = _HEAD.format(
        **{**machine, "versions": versions}, rounds=report["rounds"], seconds=report["seconds"], low=low, high=high
    )
    lines = [head, "![windows/s of every loader and scenario](results.png)"]
    for scenario, result in report["scenarios"].items():
        lines += table(scenario, result)
    (out / "RESULTS.md").write_text("\n".join(lines) + "\n")
    plot(report, out / "results.png")


def plot(report: dict[str, Any], path: Path) -> None:
    """Windows/s on a logarithmic axis, one panel a scenario."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return
    scenarios = {name: result["figures"] for name, result in report["scenarios"].items() if result["figures"]}
    figure, axes = pyplot.subplots(len(scenarios), 1, figsize=(8, 1 + 2.2 * len(scenarios)), squeeze=False)
    for axis, (name, figures) in zip(axes[:, 0], scenarios.items(), strict=True):
        names = sorted((n for n in figures if n != "bound"), key=lambda n: median(figures[n], "windows_per_s"))
        values = [median(figures[n], "windows_per_s") for n in names]
        colours = ["tab:blue" if n.startswith(OURS) else "0.7" for n in names]
        axis.barh(names, values, color=colours)
        if "bound" in figures:
            axis.axvline(statistics.median(bound_rates(figures)), color="tab:red", linewidth=1)
        axis.set_xscale("log")
        axis.set_title(f"{name}: windows/s (red: the bound)", fontsize=9, loc="left")
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
