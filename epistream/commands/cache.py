"""``epistream cache``: what this node's shard caches hold, and tending them."""

import itertools
import json
import shutil
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import psutil
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from epistream.cache import admin
from epistream.cache.options import CacheOptions
from epistream.commands.sources import layout_options, open_source, reach_option
from epistream.commands.tables import progress_bar
from epistream.errors import CacheError
from epistream.units import distinct_sizes, parse_size, size_text
from epistream.working_folder import absolute

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
def ls(directory: Path | None, as_json: bool) -> None:
    """List entries: what they are, their size, since when unused, and which processes lease them."""
    views = _views(directory)
    if as_json:
        click.echo(json.dumps([_as_dict(view) for view in views], indent=1))
        return
    console = Console()
    for view in views:
        console.print(_headline(view), soft_wrap=True)
        for row in view.claims:
            console.print(f"claimed: {_claim(row)}", soft_wrap=True)
        console.print(_entries(view))
    if not views:
        console.print("No cache of this user on this node.")


@command.command()
@directory_option
def stats(directory: Path | None) -> None:
    """Show each cache's budget and where it comes from, what is held and leased, and recent failures."""
    console = Console(highlight=False)
    views = _views(directory)
    for view in views:
        table = Table(title=str(view.path), title_justify="left", show_header=False)
        table.add_row("budget", view.budget)
        table.add_row("held", f"{size_text(view.held_bytes)} in {len(view.entries)} entries")
        table.add_row("leased or being filled", size_text(view.leased_bytes))
        table.add_row("used by", _processes(view.pids) or "nobody")
        table.add_row("outlives its last user", "yes" if view.kept else "no")
        for row in view.claims:
            table.add_row("claimed", _claim(row))
        for key, note in view.notes.items():
            table.add_row(f"{note.kind} {key[:8]}", note.text)
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
        raise CacheError("cache: none of this user on this node, wanted one to resize. Start a job or 'cache warm'.")
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
    fetch besides ends with them, as ever.
    """
    from epistream.cache.node import NodeCache
    from epistream.cache.store.places import file_system_type, is_network
    from epistream.file_systems import local_path
    from epistream.loader.reading.shard_entry import shard_entry

    dataset = open_source(source, **reached)
    place = str(directory) if directory else None
    options = (
        CacheOptions(mode="disk", disk_directory=place, disk_budget_bytes=budget)
        if mode == "disk"
        else CacheOptions(mode="shm", directory=place, budget_bytes=budget)
    )
    entries = [shard_entry(dataset, shard) for shard in range(len(dataset.shard_url))]
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
    used_by = _processes(view.pids) or "nobody"
    over = view.held_bytes - view.budget_bytes
    above = f", {distinct_sizes(over, 0)[0]} above the budget until leases end" if over > 0 else ""
    held = distinct_sizes(view.held_bytes, view.budget_bytes)[0]
    return f"{view.path}: {held} of {view.budget}{above}; used by {used_by}{kept}"


def _claim(row: admin.ClaimRow) -> str:
    held = f"which hold {size_text(row.held_bytes)}"
    return f"{size_text(row.num_bytes)} for decoded frames of group {row.group}, {held}; by {_processes(row.pids)}"


def _entries(view: admin.CacheView, most: int | None = None) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("entry", "size", "state", "unused for", "leased by"):
        table.add_column(name, justify="right" if name in ("size", "unused for") else "left", overflow="fold")
    lines = list(_lines(view.entries))
    for line in lines[:most]:
        table.add_row(*line)
    if most is not None and len(lines) > most:
        table.add_row(f"and {len(lines) - most} more", "", "", "", "")
    return table


def _lines(entries: Iterable[admin.EntryRow]) -> Iterator[tuple[Text | str, ...]]:
    """A line for each entry; chunks of decoded frames, of which there are dozens, are one for each group and state."""
    lines = defaultdict(list)
    for row in entries:
        lines[(row.key[:8], row.state) if row.is_made else row.key].append(row)
    for rows in lines.values():
        first = rows[0]
        what = first.url or first.key
        if first.is_made:
            what = f"decoded frames of group {first.key[:8]}, {len(rows)} {'entry' if len(rows) == 1 else 'entries'}"
        pids = tuple(sorted({pid for row in rows for pid in row.pids}))
        yield Text(what), size_text(sum(row.size for row in rows)), first.state, _age(first.idle_s), _processes(pids)


def _screen(view: admin.CacheView) -> Group:
    bar = ProgressBar(total=max(1, view.budget_bytes), completed=view.held_bytes, width=60)
    held = " of ".join(distinct_sizes(view.held_bytes, view.budget_bytes))
    line = Text(f"{view.path}  {held}, {size_text(view.leased_bytes)} leased")
    return Group(line, bar, _entries(view, most=20), Text(""))


def _processes(pids: tuple[int, ...]) -> str:
    named = []
    for pid in pids[:6]:
        try:
            named.append(f"{psutil.Process(pid).name()}[{pid}]")
        except psutil.Error:
            named.append(f"[{pid}]")
    return ", ".join(named) + (f" and {len(pids) - 6} more" if len(pids) > 6 else "")


def _age(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _as_dict(view: admin.CacheView) -> dict[str, object]:
    values = {name: getattr(view, name) for name in ("budget_bytes", "held_bytes", "pids", "kept")}
    entries = [asdict(row) | {"idle_s": round(row.idle_s, 3)} for row in view.entries]
    claims = [asdict(row) for row in view.claims]
    return {"path": str(view.path), **values, "claims": claims, "entries": entries}
