"""The figures of `run.py` as a page."""

import statistics
from pathlib import Path
from typing import Any

from loaders import BATCH_SIZE, NUM_ACTIONS, NUM_STATES, NUM_WORKERS, STREAMING_BUFFER
from one import FLOOR

BASE = "LeRobotDataset"


def middle(rows: list[dict[str, Any]], key: str) -> float:
    """Median over the rounds."""
    return statistics.median(row[key] for row in rows)


def ratio(rows: list[dict[str, Any]], base: list[dict[str, Any]], key: str) -> float:
    """Median of the ratios of the same rounds."""
    return statistics.median(row[key] / other[key] for row, other in zip(rows, base, strict=True))


def above(rows: list[dict[str, Any]], base: list[dict[str, Any]], key: str) -> float:
    """Median of the differences of the same rounds."""
    return statistics.median(row[key] - other[key] for row, other in zip(rows, base, strict=True))


def line(name: str, figures: dict[str, list[dict[str, Any]]]) -> str:
    """One loader's row."""
    rows, base = figures[name], figures.get(BASE)
    rates = sorted(row["windows_per_s"] for row in rows)
    cells = [
        name,
        f"{middle(rows, 'windows_per_s'):,.0f}",
        f"{rates[0]:,.0f}-{rates[-1]:,.0f}",
        f"{ratio(rows, base, 'windows_per_s'):.2f}" if base else "",
        f"{middle(rows, 'cpu_s_per_1000'):.2f}",
        f"{ratio(rows, base, 'cpu_s_per_1000'):.3f}" if base else "",
        f"{middle(rows, 'fresh_first_batch_s'):.2f}",
        f"{middle(rows, 'first_batch_s'):.2f}",
        f"{above(rows, figures[FLOOR], 'own_mib'):,.0f}",
        f"{middle(rows, 'shared_mib'):,.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def cameras(info: dict[str, Any]) -> str:
    """What the data set's pictures are."""
    kinds = {
        f"{feature['shape'][0]}x{feature['shape'][1]}, {feature.get('info', {}).get('video.codec', feature['dtype'])}"
        for feature in info["features"].values()
        if feature["dtype"] in ("video", "image")
    }
    count = sum(feature["dtype"] in ("video", "image") for feature in info["features"].values())
    return f"{count} cameras ({'; '.join(sorted(kinds))})"


def write(report: dict[str, Any], path: Path) -> None:
    """The page."""
    info, found, figures = report["info"], report["machine"], report["figures"]
    names = sorted(
        (name for name in figures if name != FLOOR), key=lambda name: -middle(figures[name], "windows_per_s")
    )
    environments = {
        name: ", ".join(f"{package} {version}" for package, version in by.items())
        for name, by in report["versions"].items()
    }
    text = [
        "# LeRobot's loaders and epistream on the same LeRobot data set",
        "",
        f"{found['date']}; {found['cpu']}; {found['memory_gib']} GiB; Python {found['python']}; load "
        f"{' to '.join(map(str, found['load']))}. "
        + " ".join(f"Environment {name}: {text}." for name, text in environments.items()),
        "",
        f"A data set {info['codebase_version']} of {info['total_episodes']} episodes and {info['total_frames']:,} "
        f"steps at {info['fps']} Hz, {cameras(info)}, in the page cache. Windows at random: {NUM_STATES} states, "
        f"{NUM_ACTIONS} actions, each camera's present frame; batches of {BATCH_SIZE}, {NUM_WORKERS} workers. "
        f"{report['rounds']} rounds of {report['seconds']:g} s, interleaved, each measurement a process of its own; "
        "medians, and medians of the ratios within a round.",
        "",
        "| loader | windows/s | range | of LeRobotDataset's | CPU s per 1,000 | of LeRobotDataset's "
        "| first batch, nothing kept (s) | again (s) | own memory above torch (MiB) | shared memory (MiB) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        *(line(name, figures) for name in names),
        "",
        "CPU seconds are those of all processes of a loader. Memory is the proportional set size of all of them: own "
        "is anonymous memory and files, less that of as many processes that import torch alone; shared is shared "
        "memory, batches on their way included. The first batch counts from making the data set, after all imports: "
        "with nothing kept for this user (no tables of `datasets`, no indexes), and with what the first opening kept.",
        f"StreamingLeRobotDataset shuffles among {STREAMING_BUFFER} items; its default of 1,000 would take 15 GB. It "
        "shares out data files, and by its own message has work for one of the workers here.",
        *(f"{name} was not measured: {why}." for name, why in report["errors"].items()),
    ]
    path.write_text("\n".join(text) + "\n")
