"""`epistream edit`: episodes added, removed, corrected and divided, datasets joined, without packing again."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import click
from rich.console import Console

from epistream.commands.parameters import option
from epistream.commands.sources import layout_options, reach_option, storage_options, wanted_layout
from epistream.commands.tables import StageBar, new_table, print_table, printable
from epistream.errors import OptionError
from epistream.sharding.edit import functions as edits
from epistream.sharding.edit.history_edits import kept
from epistream.sharding.edit.revision import EditReport
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.report import PackProgress
from epistream.sharding.tasks.engine import EngineOptions
from epistream.shown_urls import shown
from epistream.units import count_text

_INTERRUPTED = 130  # what a shell reports of a program ended by Ctrl-C
_SHOWN = 8  # digits of a fingerprint, which are enough for most commands
# Numbers from the end, '-10:', are no options.
_NEGATIVE = {"ignore_unknown_options": True}
_EPISODES_HELP = "Which ones: '0:100', 'success and length < 500', 'task == \"pick*\"', @FILE. All if not given."


@click.group(name="edit")
def command() -> None:
    """Edit a dataset of shards in place. No shard changes: an edit writes a new manifest and keeps the old one.

    DATASET is a local folder, or a URL that can be written to (s3://...). What it was before still opens, as
    DATASET@FINGERPRINT.
    """


def _episodes_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--episodes", metavar="SELECTION", help=_EPISODES_HELP)(function)


@command.command()
@click.argument("dataset")
@click.argument("sources", nargs=-1, required=True, metavar="SRC...")
@layout_options
@option(PackOptions, "workers", default=None, show_default="one a core")
@option(PackOptions, "engine")
@option(PackOptions, "address")
@option(PackOptions, "skip_bad")
@_episodes_option
@reach_option
def add(
    dataset: str,
    sources: tuple[str, ...],
    layout: str | None,
    layout_file: str | None,
    workers: int | None,
    options_json: str | None,
    **options: Any,
) -> None:
    """Pack the episodes of SRC... that DATASET has not had yet, as it was packed itself, and add them.

    Files that were packed before are known by their contents and left out, so the same folder can be given each day.
    """
    chosen = wanted_layout(layout, layout_file)
    if chosen is not None:
        options["layout"] = chosen
    options = {name: value for name, value in options.items() if value}
    display = _PackDisplay()
    is_local = options.get("engine") == "local"
    num_workers = len(os.sched_getaffinity(0)) if workers is None and is_local else workers
    try:
        with display:
            report = edits.add(
                dataset,
                list(sources),
                storage_options=storage_options(options_json),
                progress=display.show,
                workers=num_workers,
                **options,
            )
    except KeyboardInterrupt:
        click.echo(f"interrupted: {shown(dataset)} is as it was; the same command goes on", err=True)
        sys.exit(_INTERRUPTED)
    _print(report)


@command.command(context_settings=_NEGATIVE)
@click.argument("dataset")
@click.argument("episodes", metavar="SELECTION")
@reach_option
def remove(dataset: str, episodes: str, options_json: str | None) -> None:
    """Take the episodes of SELECTION out of DATASET: '3', '0:100', 'success == False', '@findings.json'."""
    _print(edits.remove(dataset, episodes, storage_options=storage_options(options_json)))


@command.command(context_settings=_NEGATIVE)
@click.argument("dataset")
@click.argument("steps", required=False, metavar="[START:STOP]")
@_episodes_option
@click.option("--from", "file", type=click.Path(exists=True, dir_okay=False), help="Steps by episode, as doctor says.")
@reach_option
def trim(dataset: str, steps: str | None, episodes: str | None, file: str | None, options_json: str | None) -> None:
    """Let windows begin only at the steps START:STOP of episodes, as a Python slice: '10:-5', ':200'.

    With --from, at the steps that a file of 'epistream doctor --select-out' says.
    """
    access = storage_options(options_json)
    if (steps is None) == (file is None):
        raise OptionError("trim: wanted either START:STOP, for example 10:-5, or --from FILE.")
    if file is not None:
        ranges = edits.listed_ranges(dataset, file, storage_options=access)
        _print(edits.trim(dataset, ranges=ranges, storage_options=access))
        return
    _print(edits.trim(dataset, _slice(steps or ""), episodes, storage_options=access))


@command.command()
@click.argument("dataset")
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--replace", "replaced", multiple=True, metavar="OLD=NEW", help="Wherever OLD stands. May be repeated.")
@_episodes_option
@reach_option
def tasks(
    dataset: str, texts: tuple[str, ...], replaced: tuple[str, ...], episodes: str | None, options_json: str | None
) -> None:
    """Give episodes of DATASET the instruction TEXT, or several."""
    replacing = _pairs(replaced, "--replace") or None
    access = storage_options(options_json)
    _print(edits.tasks(dataset, texts or None, episodes, replacing=replacing, storage_options=access))


@command.command()
@click.argument("dataset")
@click.argument("name", required=False)
@_episodes_option
@option(PackOptions, "val_fraction")
@option(PackOptions, "split_seed")
@reach_option
def split(
    dataset: str,
    name: str | None,
    episodes: str | None,
    val_fraction: float | None,
    split_seed: int,
    options_json: str | None,
) -> None:
    """Assign episodes of DATASET to the split NAME, or with --val-fraction to train and val."""
    report = edits.split(
        dataset,
        name,
        episodes,
        val_fraction=val_fraction,
        split_seed=split_seed,
        storage_options=storage_options(options_json),
    )
    _print(report)


@command.command()
@click.argument("dataset")
@click.argument("names", nargs=-1, required=True, metavar="OLD=NEW...")
@reach_option
def rename(dataset: str, names: tuple[str, ...], options_json: str | None) -> None:
    """Call features of DATASET otherwise."""
    pairs = _pairs(names, "rename")
    _print(edits.rename(dataset, pairs, storage_options=storage_options(options_json)))


@command.command()
@click.argument("dataset")
@click.argument("features", nargs=-1, required=True, metavar="FEATURE...")
@reach_option
def drop(dataset: str, features: tuple[str, ...], options_json: str | None) -> None:
    """Leave features out of DATASET: names, or patterns such as 'observation.images.*'."""
    _print(edits.drop(dataset, features, storage_options=storage_options(options_json)))


@command.command()
@click.argument("sources", nargs=-1, required=True, metavar="DATASET DATASET...")
@click.argument("out")
@click.option("--copy", is_flag=True, help="Copy the shards; else OUT names them where they are.")
@reach_option
def merge(sources: tuple[str, ...], out: str, copy: bool, options_json: str | None) -> None:
    """Make one dataset OUT of several."""
    bar = StageBar()
    with bar:
        report = edits.merge(
            sources,
            out,
            copy=copy,
            storage_options=storage_options(options_json),
            progress=lambda num_done, num_total: _show(bar, "copying", num_done, num_total, "shards"),
        )
    _print(report)


@command.command()
@click.argument("dataset")
@option(PackOptions, "shard_size", metavar="SIZE")
@option(EngineOptions, "engine")
@option(EngineOptions, "address")
@option(EngineOptions, "workers", default=None, show_default="one")
@click.option(
    "--prune",
    type=click.IntRange(0),
    metavar="N",
    help="Keep only the last N manifests before this one, and remove the files that none of these needs.",
)
@reach_option
def compact(dataset: str, shard_size: str, prune: int | None, options_json: str | None, **options: Any) -> None:
    """Write the episodes that are left of DATASET into new shards, without those that were removed."""
    bar = StageBar()
    with bar:
        report = edits.compact(
            dataset,
            shard_size=shard_size,
            prune_to=prune,
            engine=EngineOptions(**options),
            storage_options=storage_options(options_json),
            progress=lambda num_done, num_total: _show(bar, "copying", num_done, num_total, "episodes"),
        )
    _print(report)


@command.command()
@click.argument("dataset")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, the oldest first.")
@reach_option
def log(dataset: str, as_json: bool, options_json: str | None) -> None:
    """Show what was done to DATASET, the last edit first."""
    access = storage_options(options_json)
    history, opens = edits.log(dataset, storage_options=access), kept(dataset, storage_options=access)
    if as_json:
        told = [{**asdict(edit), "kept": None if opens is None else edit.fingerprint in opens} for edit in history]
        click.echo(json.dumps(told, indent=1, ensure_ascii=False))
        return
    table = new_table()
    for name in ("fingerprint", "when (UTC)", "what", "command"):
        table.add_column(name, overflow="fold")
    for edit in reversed(history):
        when = edit.when.replace("T", " ").removesuffix("+00:00")
        gone = "" if opens is None or edit.fingerprint in opens else " (not kept)"
        table.add_row(
            f"{edit.fingerprint[:_SHOWN]}{gone}", *(printable(text) for text in (when, edit.what, edit.command))
        )
    print_table(table)


@command.command()
@click.argument("dataset")
@click.option("--to", "fingerprint", metavar="FINGERPRINT", help="As it was then; its first digits are enough.")
@reach_option
def undo(dataset: str, fingerprint: str | None, options_json: str | None) -> None:
    """Make DATASET what it was before its last edit. That is an edit, too: it can be undone with --to."""
    _print(edits.undo(dataset, fingerprint, storage_options=storage_options(options_json)))


def _pairs(texts: Sequence[str], where: str) -> dict[str, str]:
    """What is given as OLD=NEW, each OLD once."""
    pairs: dict[str, str] = {}
    for text in texts:
        old, sign, new = text.partition("=")
        if not (old and sign and new):
            raise OptionError(f"{where} {text!r}: wanted OLD=NEW.")
        if old in pairs:
            raise OptionError(f"{where}: {old!r} given twice, wanted it once.")
        pairs[old] = new
    return pairs


def _slice(text: str) -> tuple[int | None, int | None]:
    first, sign, last = text.partition(":")
    try:
        if not sign:
            raise ValueError
        return (int(first) if first.strip() else None, int(last) if last.strip() else None)
    except ValueError:
        raise OptionError(f"trim {text!r}: wanted START:STOP as a Python slice, for example 10:-5 or :200.") from None


def _show(bar: StageBar, stage: str, num_done: int, num_total: int, what: str) -> None:
    bar.begin(stage)
    bar.update(num_done, num_total, f"{num_done:,}/{num_total:,} {what}")


class _PackDisplay(StageBar):
    """How far the packing of what is added is."""

    def show(self, now: PackProgress) -> None:
        """Bring the bar up to date."""
        _show(self, now.stage, now.num_done, now.num_total, "episodes" if now.stage == "packing" else "files")


def _print(report: EditReport) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if report.what:
        console.print(report.what, markup=False)
    splits: Sequence[str] = [f"{name} {count:,}" for name, count in report.splits.items()]
    told = ", ".join(splits) if set(report.splits) != {"all"} else "no split"
    counts = (
        count_text(report.num_episodes, "episode"),
        count_text(report.num_steps, "step"),
        count_text(report.num_shards, "shard"),
    )
    console.print(f"now {', '.join(counts)}; {told}", markup=False)
    for note in report.notes:
        console.print(note, style="yellow", markup=False)
    before = f", was {report.before[:_SHOWN]}" if report.before not in ("", report.fingerprint) else ""
    console.print(
        f"{shown(report.url)}  fingerprint {report.fingerprint}{before}  ({report.seconds:.1f} s)", markup=False
    )
