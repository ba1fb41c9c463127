"""``epistream cache``: what this node's shard caches hold, and tending them."""

import itertools
import json
import shutil
import sys
import time
from bisect import bisect_right
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn, TransferSpeedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from epistream.cache import admin
from epistream.cache.options import CacheOptions
from epistream.commands.cache_entries import frames_of, lines_of, processes, table_of
from epistream.commands.sources import layout_options, open_source, reach_option
from epistream.commands.tables import print_table, progress_bar
from epistream.errors import CacheError, EpistreamError
from epistream.hints import grouped
from epistream.units import distinct_sizes, parse_size, size_text
from epistream.working_folder import absolute

if TYPE_CHECKING:
    from epistream.cache.source.entry import Entry
    from epistream.sharding.manifest.opened_dataset import Dataset

directory_option = click.option(
    "--directory",
    type=click.Path(path_type=Path),
    help="A cache directory of your own choice; without it, this user's in /dev/shm and /var/tmp.",
)


@click.group()
def command() -> None:
    """List, clear, resize and warm this node's shard caches."""


@command.command()
@directory_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON array.")
@click.option("--all", "every", is_flag=True, help="A line for each entry.")
def ls(directory: Path | None, as_json: bool, every: bool) -> None:
    """List entries: what they are, their size, since when unused, and which processes lease them.

    Decoded frames, HDF5 files, LeRobot episodes and parts of shards are one line for each set of episodes, and so are
    many shards that nobody reads.
    """
    views = _views(directory)
    if as_json:
        click.echo(json.dumps([_as_dict(view) for view in views], indent=1))
        return
    console = Console(highlight=False, markup=False)
    for view in views:
        console.print(_headline(view), soft_wrap=True)
        for row in view.claims:
            console.print(f"claimed: {_claim(row, view)}", soft_wrap=True)
        if view.entries:
            print_table(table_of(lines_of(view.entries, every=every)))
    if not views:
        console.print("No cache of this user on this node.")


@command.command()
@directory_option
def stats(directory: Path | None) -> None:
    """Show each cache's budget and where it comes from, what is held and leased, and recent failures."""
    console = Console(highlight=False)
    views = _views(directory)
    for view in views:
        table = Table(title=Text(str(view.path)), title_justify="left", show_header=False)
        table.add_row("budget", view.budget)
        table.add_row("held", f"{size_text(view.held_bytes)} in {len(view.entries)} entries")
        table.add_row("leased or being filled", size_text(view.leased_bytes))
        table.add_row("used by", Text(processes(view.pids) or "nobody"))
        table.add_row("outlives its last user", "yes" if view.kept else "no")
        for row in view.claims:
            table.add_row("claimed", Text(_claim(row, view)))
        for key, note in view.notes.items():
            table.add_row(f"{note.kind} {key[:8]}", Text(note.text))
        console.print(table)
    if not views:
        console.print("No cache of this user on this node.")


@command.command()
@directory_option
@click.option("--forget", is_flag=True, help="Also let a kept cache end with its last user.")
def clear(directory: Path | None, forget: bool) -> None:
    """Give back everything that no process leases, and remove what dead processes left."""
    paths = _paths(directory)
    removed = [] if directory else admin.sweep_usual_places()
    for path in removed:
        click.echo(f"{path}: left by dead processes, removed")
    for path in paths:
        if path in removed:
            continue
        freed = admin.clear(path, forget=forget)
        left = admin.look(path) if path.exists() else None
        after = f"{size_text(left.held_bytes)} leased or kept" if left else "nothing left"
        click.echo(f"{path}: {size_text(freed)} given back, {after}")
    if not paths and not removed:
        click.echo("No cache of this user on this node.")


@command.command()
@click.argument("size")
@directory_option
def resize(size: str, directory: Path | None) -> None:
    """Set the byte budget of a cache for all who use it: 8GiB, 500MB, 10% of its file system, or "none" for no cap."""
    if size != "none":
        parse_size(size, whole=1)  # what is no size is told first, whatever caches there are
    paths = _paths(directory)
    if not paths:
        raise CacheError(
            "cache: none of this user on this node, wanted one to resize. Start a job, or fetch a dataset with "
            "'epistream cache warm SOURCE'."
        )
    for path in paths:
        file_system_bytes = shutil.disk_usage(path).total if path.exists() else 0  # else `admin.resize` refuses
        cap = None if size == "none" else parse_size(size, whole=file_system_bytes)
        freed = admin.resize(path, cap)
        click.echo(f"{path}: a cap of {'none' if cap is None else size_text(cap)}, {size_text(freed)} given back")


@command.command()
@click.argument("source", nargs=-1, required=True)
@directory_option
@click.option("--mode", type=click.Choice(["shm", "disk"]), default="shm", show_default=True, help="Where to keep it.")
@click.option("--budget", metavar="SIZE", help="Most bytes to keep: 8GiB, 500MB, 4096.")
@layout_options
@reach_option
def warm(source: tuple[str, ...], directory: Path | None, mode: str, budget: str | None, **reached: Any) -> None:
    """Fetch a dataset's shards into the cache ahead of a job, in the dataset's order, as far as they fit.

    They then outlive this command and the jobs that use them, until 'epistream cache clear --forget'; what those jobs
    fetch besides ends with them, as ever. Episodes of a LeRobot data set that cannot be read are named and left out;
    the exit code is 1 then.
    """
    from epistream.cache.node import NodeCache
    from epistream.cache.store.places import file_system_type, is_network
    from epistream.file_systems import local_path

    dataset = open_source(source, **reached)
    place = str(directory) if directory else None
    options = (
        CacheOptions(mode="disk", disk_directory=place, disk_budget_bytes=budget)
        if mode == "disk"
        else CacheOptions(mode="shm", directory=place, budget_bytes=budget)
    )
    entries, faults = _entries(dataset)
    for line in grouped(faults):
        click.echo(f"left out: {line}", err=True)
    if not entries:
        sys.exit(1)
    with NodeCache(options, dataset.storage_options) as cache:
        budget_now = cache.budget()
        room = budget_now.bytes if budget_now else 0
        totals = list(itertools.accumulate((entry.size for entry in entries), initial=0))
        fitting = bisect_right(totals, room) - 1
        total = totals[fitting]
        columns = TextColumn("warming"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn()
        with progress_bar(*columns, transient=False) as progress:
            task = progress.add_task("warming", total=total)
            cache.keep(entries[:fitting])
            for entry in entries[:fitting]:
                cache.open(entry).close()
                progress.advance(task, entry.size)
        done = cache.stats()
    click.echo(
        f"{fitting} of {len(entries)} shards are in the cache ({size_text(total)}): {done.fills} fetched, "
        f"{done.hits} were there"
    )
    path = local_path(entries[0].parts[0].url)
    if path is not None and not is_network(file_system_type(path)):
        click.echo(
            f"These files are on a local disk and are read in place: only jobs with cache='{mode}' use the copy."
        )
    if fitting < len(entries) and budget_now is not None:
        found, needed = budget_now.beside(totals[-1])
        click.echo(f"The rest does not fit a budget of {found}, all take {needed}: {budget_now.cure}.")
    if faults:
        sys.exit(1)


def _entries(dataset: "Dataset") -> "tuple[list[Entry], list[str]]":
    """The shards of a dataset as entries, and why some cannot be: those of a LeRobot data set are looked at for it."""
    from epistream.loader.shards.shard_entry import shard_entry

    entries: list[Entry] = []
    faults: list[str] = []
    columns = TextColumn("looking at episodes"), BarColumn(), MofNCompleteColumn()
    with progress_bar(*columns) as progress:
        for shard in progress.track(range(dataset.num_shards)):
            try:
                entries.append(shard_entry(dataset, shard))
            except EpistreamError as error:
                faults.append(str(error))
    return entries, faults


@command.command()
@directory_option
@click.option("--interval", type=click.FloatRange(0.05), default=1.0, show_default=True, help="Seconds between looks.")
@click.option("--count", type=click.IntRange(1), help="Looks before it ends; without it, until Ctrl-C.")
def top(directory: Path | None, interval: float, count: int | None) -> None:
    """Watch the caches live: how full, who uses them, which entries come and go."""
    with Live(Text("looking"), console=Console(), auto_refresh=False) as live, suppress(KeyboardInterrupt):
        for looks in itertools.count(1):
            views = _views(directory)
            live.update(Group(*(_screen(view) for view in views)) if views else Text("No cache."), refresh=True)
            if looks == count:
                return
            time.sleep(interval)


def _paths(directory: Path | None) -> list[Path]:
    return [absolute(directory)] if directory else admin.find_caches()


def _views(directory: Path | None) -> list[admin.CacheView]:
    if directory is not None:
        return [admin.look(absolute(directory))]
    views = []
    for path in admin.find_caches():
        try:
            views.append(admin.look(path))
        except CacheError:  # its last user left, just now
            continue
    return views


def _headline(view: admin.CacheView) -> str:
    kept = ", kept" if view.kept else ""
    used_by = processes(view.pids) or "nobody"
    over = view.held_bytes - view.budget_bytes
    above = f", {distinct_sizes(over, 0)[0]} above the budget until leases end" if over > 0 else ""
    held = distinct_sizes(view.held_bytes, view.budget_bytes)[0]
    return f"{view.path}: {held} of {view.budget}{above}; used by {used_by}{kept}"


def _claim(row: admin.ClaimRow, view: admin.CacheView) -> str:
    held = f"which hold {size_text(row.held_bytes)}"
    what = frames_of(row.group, view.entries)
    return f"{size_text(row.num_bytes)} for {what}, {held}; by {processes(row.pids)}"


def _screen(view: admin.CacheView) -> Group:
    bar = ProgressBar(total=max(1, view.budget_bytes), completed=view.held_bytes, width=60)
    held = " of ".join(distinct_sizes(view.held_bytes, view.budget_bytes))
    line = Text(f"{view.path}  {held}, {size_text(view.leased_bytes)} leased")
    return Group(line, bar, table_of(lines_of(view.entries), most=20), Text(""))


def _as_dict(view: admin.CacheView) -> dict[str, object]:
    values = {name: getattr(view, name) for name in ("budget_bytes", "held_bytes", "pids", "kept")}
    entries = [asdict(row) | {"idle_s": round(row.idle_s, 3)} for row in view.entries]
    claims = [asdict(row) for row in view.claims]
    return {"path": str(view.path), **values, "claims": claims, "entries": entries}
