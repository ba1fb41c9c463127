"""``epistream verify``: one line for each fault, a summary, and an exit code."""

import sys
from itertools import groupby
from typing import Any

import click
from rich.progress import BarColumn, DownloadColumn, TextColumn

from epistream.commands.parameters import option
from epistream.commands.sources import open_source, reach_option
from epistream.commands.tables import progress_bar
from epistream.hints import grouped
from epistream.sharding.check.faults import Fault
from epistream.sharding.check.verify import Report, refuse_hdf5, verify
from epistream.sharding.check.verify_shard import VerifyOptions
from epistream.sharding.tasks.engine import EngineOptions
from epistream.units import count_text, size_text


@click.command()
@click.argument("source", nargs=-1, required=True)
@click.option("--sample", type=click.IntRange(0), metavar="N", help="Decode N frames a camera and shard, not all.")
@click.option("--statistics", is_flag=True, help="Also compare the statistics that are told with the values.")
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True, help="Shards checked at once.")
@option(EngineOptions, "engine")
@option(EngineOptions, "address")
@reach_option
def command(source: tuple[str, ...], threads: int, options_json: str | None, **options: Any) -> None:
    """Check checksums, indexes against tars, and that frames decode.

    SOURCE is a dataset's folder or URL, tars by a brace pattern or glob, or a LeRobot data set: of this every episode's
    rows, its timestamps, a frame at each of them, and that all decode. Prints a line for each fault, or for many that
    are alike, and exits with 1 if there is any.
    """
    refuse_hdf5(source)
    dataset = open_source(source, options_json)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True)
    faults: list[str] = []
    try:
        with progress_bar(*columns) as bar:
            task = bar.add_task("verifying", total=int(dataset.shard_bytes.sum()))

            def note(fault: Fault) -> None:
                faults.append(str(fault))
                bar.update(task, description=f"verifying, {count_text(len(faults), 'fault')}")

            report = verify(
                dataset,
                VerifyOptions(num_threads=threads, **options),
                advance=lambda num_bytes: bar.advance(task, num_bytes),
                report_fault=note,
            )
    finally:  # also those that were found before it was interrupted
        for line in grouped(faults):
            click.echo(line)
    for name, counts in report.not_finite.items():
        click.echo(f"{name}: {counts}: no fault, as recorded; statistics leave them out")
    if report.bad_episodes:
        click.echo(f"bad episodes: {_spans(report.bad_episodes)}; a stream leaves them out with on_bad='skip'")
    click.echo(_summary(report))
    sys.exit(1 if report.faults else 0)


def _spans(numbers: list[int]) -> str:
    """Ascending numbers, neighbours as one span: ``3, 5 to 9``."""
    groups = [list(group) for _, group in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    spans = [(group[0][1], group[-1][1]) for group in groups]
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in spans)


def _summary(report: Report) -> str:
    found = count_text(len(report.faults), "fault") if report.faults else "no faults"
    return (
        f"{found}: {count_text(report.num_shards, 'shard')}, {count_text(report.num_episodes, 'episode')}, "
        f"{count_text(report.num_frames, 'frame')} decoded, {size_text(report.num_bytes)}"
    )
