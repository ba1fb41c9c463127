"""Row groups that several episodes share: fetched and decoded once by whoever comes first, and kept for all others.

LeRobot's own recordings have a row group an episode, and those are read as they are. Data sets that were converted have
hundreds of episodes in each, of which nothing can be decoded but from the beginning on.
"""

import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import FormatError, SourceChangedError
from epistream.file_systems import local_path
from epistream.sharding.files.spare_folder import entered
from epistream.sharding.files.user_cache import make_once
from epistream.sharding.files.versioned_files import version_and_bytes
from epistream.sharding.lerobot.chunked_file import ChunkedFile, ChunkWriter, TornError, unless_torn
from epistream.sharding.lerobot.files import SourceFile, open_parquet
from epistream.sharding.lerobot_meta.arrow import arrow_module, numbers_of
from epistream.sharding.lerobot_meta.parquet_ranges import SpoolError

Int64 = NDArray[np.int64]
AGAIN = "Download the file again, or finalise the recording with LeRobot."
NUMBER = "episode_index"

_KIND = "epistream.parquet-rows"
# Raised when the same group would be kept otherwise.
_RECIPE = 1
# A chunk is what is read for an episode at least.
_CHUNK_BYTES = 1 << 20
_CHUNK_ROWS = 4096
_BUFFER_BYTES = 1 << 20
# Who has written nothing for so long was killed, also where a file system has no locks.
_KILLED_S = 60.0


class Run(NamedTuple):
    """Rows of an episode in a row group, one after the other.

    Attributes:
        start: The first of them in the group.
        stop: After the last.
        table: A `pyarrow.Table` of them.
    """

    start: int
    stop: int
    table: Any


def runs_of(numbers: Int64, wanted: int) -> list[tuple[int, int]]:
    """Where one episode's rows are among rows of episodes, half-open."""
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(numbers)) + 1, [len(numbers)]]).tolist()
    return [(start, stop) for start, stop in pairwise(cuts) if start < stop and numbers[start] == wanted]


def shared_runs(file: SourceFile, group: int, columns: Sequence[str], wanted: int, keep: "Keeping") -> list[Run]:
    """Rows of an episode in a row group that it shares with others; all of that group is kept when this returns.

    Args:
        file: A data file.
        group: Number of the row group.
        columns: What is kept of it; "episode_index" is among them.
        wanted: The episode.
        keep: How.

    Raises:
        FormatError: If the file is torn, or does not say the episode of each row.
        SourceError, FetchError, SourceChangedError: If it cannot be read, or changes meanwhile.
        CacheError, DeadlineError: As `make_once`.
    """

    def use(kept: ChunkedFile) -> list[Run]:
        arrays = kept.arrays
        mine = np.flatnonzero(arrays["number"] == wanted)
        stops = np.append(arrays["run"][1:], arrays["row"][-1])
        places = [(int(arrays["run"][one]), int(stops[one])) for one in mine]
        return [Run(start, stop, _table(kept, start, stop)) for start, stop in places]

    told = json.dumps([_RECIPE, file.url, file.version, group, *columns])
    write = partial(_write, file, group, columns, keep)
    return unless_torn(lambda: keep_chunks(f"rows\0{told}", ".rows", _KIND, keep.folder, file, write), use)


class Keeping(NamedTuple):
    """How rows are kept.

    Attributes:
        folder: Where.
        row_bytes: What those of a row take at most.
    """

    folder: Path
    row_bytes: int


def keep_chunks(
    told: str, suffix: str, kind: str, folder: Path, file: SourceFile, write: Callable[[BinaryIO], None]
) -> ChunkedFile:
    """A file of chunks that is kept; made now if there is none.

    Args:
        told: What tells it from others.
        suffix: Of its name, with the dot.
        kind: What it says it is.
        folder: Where it is kept.
        file: What it is made from.
        write: Writes it.

    Raises:
        CacheError, DeadlineError: As `make_once`; and what `write` raises.
    """
    name = xxhash.xxh3_128_hexdigest(told.encode())
    kept = f"{name}{suffix}"

    def read(place: Path) -> ChunkedFile | None:
        try:
            return ChunkedFile(place / kept, kind)
        except (OSError, TornError):
            return None

    def write_alone(target: BinaryIO) -> None:
        _remove_what_killed_ones_left(Path(target.name), kept)
        write(target)

    for spare in entered():  # what had no room in its folder is not begun there again for each episode
        found = read(spare)
        if found is not None:
            return found
    return make_once(folder / f"{name}.lock", read, lambda: [(kept, write_alone)], file.url)


def _remove_what_killed_ones_left(mine: Path, kept: str) -> None:
    """It may be as large as the group. Others do not write this file while it is written."""
    with contextlib.suppress(OSError):
        for path in mine.parent.glob(f".{kept}.*.tmp"):
            if path != mine and path.stat().st_mtime < time.time() - _KILLED_S:
                path.unlink(missing_ok=True)


def _table(kept: ChunkedFile, start: int, stop: int) -> Any:
    """Rows [start, stop)."""
    arrow, row = arrow_module("pyarrow"), kept.arrays["row"]
    first, last = int(np.searchsorted(row, start, side="right")) - 1, int(np.searchsorted(row, stop, side="left"))
    parts = [arrow.ipc.open_stream(kept.chunk(number)).read_all() for number in range(first, last)]
    before = int(row[first])
    return arrow.concat_tables(parts).slice(start - before, stop - start)


def _write(file: SourceFile, group: int, columns: Sequence[str], keep: Keeping, target: BinaryIO) -> None:
    arrow = arrow_module("pyarrow")
    writer = ChunkWriter(target)
    rows, numbers, runs = [0], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    last: int | None = None
    most = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // max(1, keep.row_bytes)))
    for batch in batches_of(file, group, columns, most, footers=keep.folder, spools=Path(target.name).parent):
        there = _numbers(batch, file)
        starts = np.append(0, np.flatnonzero(np.diff(there)) + 1)
        starts = starts[1:] if len(there) and there[0] == last else starts
        last = int(there[-1])
        numbers.append(there[starts])
        runs.append(starts + rows[-1])
        rows.append(rows[-1] + batch.num_rows)
        sink = arrow.BufferOutputStream()
        with arrow.ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        writer.add(memoryview(sink.getvalue()))
    told = {"row": rows, "number": np.concatenate(numbers), "run": np.concatenate(runs)}
    writer.finish(_KIND, {}, {name: np.asarray(values, np.int64) for name, values in told.items()})
    refuse_changed(file)


def _numbers(batch: Any, file: SourceFile) -> Int64:
    """The episode of each row.

    Raises:
        FormatError: If they are not told.
    """
    position = batch.schema.get_field_index(NUMBER)
    if position < 0:
        raise FormatError(f"{file.url}: no column {NUMBER}, wanted it. {AGAIN}")
    column = batch.column(position)
    values = numbers_of(column)
    if values is None or values.dtype.kind not in "iu":
        state = f"{NUMBER} as {column.type}, {column.null_count} values missing"
        raise FormatError(f"{file.url}: {state}, wanted a whole number a step. {AGAIN}")
    return values.astype(np.int64)


def batches_of(
    file: SourceFile, group: int, columns: Sequence[str], most_rows: int, *, footers: Path | None, spools: Path
) -> Iterator[Any]:
    """Some columns of a row group as `pyarrow.RecordBatch`es, none of them empty.

    Args:
        file: A data file.
        group: Number of the row group.
        columns: Their names.
        most_rows: Of a batch.
        footers: The folder in which its footer is kept, if it is remote.
        spools: One with room for the bytes of the columns, if it is remote.

    Raises:
        FormatError: If the file is torn, or has more or fewer rows than it says.
        SourceError, FetchError: If it cannot be read.
        OSError: If there is no room after all.
    """
    is_remote = local_path(file.url) is None
    with tempfile.TemporaryFile(dir=spools) if is_remote else contextlib.nullcontext() as spool:
        try:
            with open_parquet(file, footers, buffer_bytes=_BUFFER_BYTES) as opened:
                wanted, count = opened.file.metadata.row_group(group).num_rows, 0
                for batch in opened.batches(group, columns, most_rows, spool):
                    count += batch.num_rows
                    if batch.num_rows:
                        yield batch.replace_schema_metadata(None)
                if count != wanted:
                    raise FormatError(f"{file.url}: {count} rows of row group {group}, wanted {wanted}. {AGAIN}")
        except SpoolError as error:
            raise OSError(error.errno, error.strerror) from error


def bounds_of(parquet: Any, groups: Iterable[int]) -> list[tuple[int, int] | None]:
    """The smallest and the largest number of an episode in each of some row groups; None where that is not told."""
    names = (parquet.schema.column(leaf).path for leaf in range(parquet.metadata.num_columns))
    leaf = next((leaf for leaf, name in enumerate(names) if name == NUMBER), None)
    found: list[tuple[int, int] | None] = []
    for group in groups:
        told = None if leaf is None else parquet.metadata.row_group(group).column(leaf).statistics
        is_told = told is not None and told.has_min_max and isinstance(told.min, int) and isinstance(told.max, int)
        found.append((told.min, told.max) if is_told and told is not None else None)
    return found


def refuse_changed(file: SourceFile) -> None:
    """See that a local file is the one that was read; of a remote one each request does so.

    Raises:
        SourceError: If it is gone.
        SourceChangedError: If it is another one.
    """
    if local_path(file.url) is None:
        return
    version, _ = version_and_bytes(file.url, file.options, "the rows of an episode", AGAIN)
    if version != file.version:
        raise SourceChangedError(f"{file.url}: changed while it was indexed. Try again when it is complete.")
