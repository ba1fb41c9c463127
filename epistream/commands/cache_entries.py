"""The entries of a cache as `epistream cache` shows them: by the names of their data, those of a set together."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import psutil
from rich.table import Table
from rich.text import Text

from epistream.access import placed_link
from epistream.cache.admin import EntryRow
from epistream.commands.tables import printable
from epistream.sharding.files.names import is_tar
from epistream.units import size_text

# Whole shards of a folder that nobody reads are one line from so many on.
_FEW = 8
# Names of processes make a narrow table unreadable.
_MOST_PROCESSES = 2
_GROUP_DIGITS = 8


class Line(NamedTuple):
    """A line of the table.

    Args:
        what: The entry, or the entries.
        rows: At least one, most recently used first.
    """

    what: str
    rows: Sequence[EntryRow]


def lines_of(entries: Iterable[EntryRow], *, every: bool = False) -> list[Line]:
    """Entries as lines, those first that were used last.

    Decoded frames, HDF5 files and LeRobot episodes are one line for each set and state, and so are parts of shards, and
    whole shards that nobody reads where there are many.

    Args:
        entries: Most recently used first.
        every: Each entry on a line of its own.
    """
    entries = list(entries)
    if every:
        return [Line(_alone(row), [row]) for row in entries]
    many: defaultdict[object, int] = defaultdict(int)
    for row in entries:
        many[_idle_shard(row)] += 1
    groups: defaultdict[object, list[EntryRow]] = defaultdict(list)
    for row in entries:
        shard = _idle_shard(row)
        groups[shard if many[shard] > _FEW and shard is not None else _set_of(row)].append(row)
    return [Line(_together(rows) if _is_set(rows) else _alone(rows[0]), rows) for rows in groups.values()]


def table_of(lines: Sequence[Line], most: int | None = None) -> Table:
    """A table of lines: what, size, state, since when unused, and who leases it; no more than `most` of them."""
    table = Table(box=None, pad_edge=False)
    for name in ("entry", "size", "state", "unused for", "leased by"):
        is_number = name in ("size", "unused for")
        fixed = name in ("size", "state", "unused for")
        table.add_column(name, justify="right" if is_number else "left", overflow="fold", no_wrap=fixed)
    for line in lines[:most]:
        first = line.rows[0]
        pids = tuple(sorted({pid for row in line.rows for pid in row.pids}))
        size = size_text(sum(row.size for row in line.rows))
        table.add_row(Text(line.what), size, first.state, age(first.idle_s), Text(processes(pids, _MOST_PROCESSES)))
    if most is not None and len(lines) > most:
        table.add_row(f"and {len(lines) - most} more", "", "", "", "")
    return table


def frames_of(group: str, entries: Iterable[EntryRow]) -> str:
    """Decoded frames of a group, by the name of their set where it is known."""
    rows = [row for row in entries if row.is_made and row.key.startswith(group)]
    place = _place(rows)
    return f"decoded frames of {place} (group {group})" if place else f"decoded frames of group {group}"


def processes(pids: tuple[int, ...], most: int = 6) -> str:
    """Processes by their names."""
    named = []
    for pid in pids[:most]:
        try:
            named.append(f"{psutil.Process(pid).name()}[{pid}]")
        except psutil.Error:
            named.append(f"[{pid}]")
    return ", ".join(named) + (f" and {len(pids) - most} more" if len(pids) > most else "")


def age(seconds: float) -> str:
    """How long ago, in one unit."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def _idle_shard(row: EntryRow) -> object:
    """The set of a whole shard that nobody reads; None for all else."""
    if row.is_made or row.pids or row.state != "ready" or not (row.url and is_tar(row.url)):
        return None
    return "idle", _folder(row.url)


def _set_of(row: EntryRow) -> object:
    """What is shown together with an entry."""
    if row.is_made:
        return row.key[:_GROUP_DIGITS], row.state
    if not row.url or (is_tar(row.url) and row.state == "ready"):
        return row.key
    return _folder(row.url), _kind_of(row.url), row.state


def _is_set(rows: Sequence[EntryRow]) -> bool:
    return len(rows) > 1 or rows[0].is_made


def _alone(row: EntryRow) -> str:
    name = printable(row.url) or row.key
    if row.is_made:
        return f"decoded frames of {printable(row.url) or 'group'} ({row.key})"
    return name


def _together(rows: Sequence[EntryRow]) -> str:
    count = f"{len(rows)} {'entry' if len(rows) == 1 else 'entries'}"
    if rows[0].is_made:
        return f"{frames_of(rows[0].key[:_GROUP_DIGITS], rows)}, {count}"
    return f"{_kind_of(rows[0].url)} of {_place(rows)}, {count}"


def _kind_of(url: str) -> str:
    """What an entry is, by the file that it is known by: of an episode of a LeRobot data set that of its rows."""
    if is_tar(url):
        return "shards"
    return "LeRobot episodes" if placed_link(url)[1].endswith(".parquet") else "HDF5 files"


def _place(rows: Sequence[EntryRow]) -> str:
    """The folder that entries are from, or the one above all of theirs; "" where none of them tells."""
    folders = sorted({_folder(row.url) for row in rows if row.url})
    if len(folders) < 2:
        return printable(folders[0]) if folders else ""
    pairs = zip(folders[0].split("/"), folders[-1].split("/"), strict=False)
    common: list[str] = []
    for one, other in pairs:
        if one != other:
            break
        common.append(one)
    # Of URLs, a protocol and a host are no folder.
    least = 4 if "://" in folders[0] else 2
    if len(common) >= least:
        return printable("/".join(common))
    return f"{printable(folders[0])} and {len(folders) - 1} more"


def _folder(url: str) -> str:
    return url.rpartition("/")[0] or url
