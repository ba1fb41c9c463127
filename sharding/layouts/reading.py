"""Reads what an adapter described: arrays whole, camera frames in slabs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from epistream.errors import EpistreamError, FormatError, LayoutError, SourceError
from epistream.plain_files import not_a_plain_file
from epistream.sharding.files.foreign import foreign_file
from epistream.sharding.layouts.base import Field
from epistream.sharding.layouts.jpeg_rows import row_bytes, true_end
from epistream.sharding.layouts.stored_rows import stored_rows
from epistream.sharding.layouts.values import dataset, first_line, small_value
from epistream.sharding.opening.file_objects import open_through
from epistream.sharding.opening.other_files import other_files
from epistream.sharding.opening.source_bytes import SourceBytes
from epistream.sharding.opening.walking import CANNOT_OPEN, meant
from epistream.sharding.pictures.codecs import jpeg_shape
from epistream.units import picture_size

# Frames are read at least one and at most this many bytes at a time: 18 raw 480x640 frames.
SLAB_BYTES = 16 << 20
_VARIABLE_ROWS = 8
_REMEDY = "Copy or record it again, or leave it out (a stream does so with on_bad='skip')."


@contextmanager
def open_source(
    path: str | Path, content: SourceBytes | None = None, *, allow_outside: bool = False
) -> Iterator[h5py.File]:
    """An HDF5 file for reading; whatever h5py raises while it is open becomes an error that names it.

    Args:
        path: A local file.
        content: Where to read its bytes instead. Other files that it names (external links, virtual datasets) cannot
            be opened then; `SourceBytes.names_others` says whether one was wanted.
        allow_outside: Whether these may be outside of the folder of the file.

    Raises:
        SourceError: If it or a file that it names is missing or unreadable, also half way through.
        LayoutError: If the body raises it, or it names a file that it may not; the path is put in front.
    """
    path = Path(path)
    problem = not_a_plain_file(path)
    if problem:
        raise SourceError(f"{path}: {problem}, wanted an HDF5 file.")
    try:
        with _open(path, content) as file:
            other_files(file, path, str(path), allow_outside=allow_outside)
            yield file
    except LayoutError as error:
        raise LayoutError(f"{path}: {error}") from error
    except EpistreamError:
        raise
    except (*CANNOT_OPEN, RecursionError) as error:
        foreign = foreign_file(path)
        if foreign:
            raise SourceError(f"{path}: {foreign.what}, wanted an HDF5 file. {foreign.advice}") from error
        raise SourceError(
            f"{path}: cannot be read as HDF5 ({first_line(meant(error))}), {path.stat().st_size:,} bytes. {_REMEDY}"
        ) from error


def _open(path: Path, content: SourceBytes | None) -> h5py.File:
    if content is None:
        return h5py.File(path, "r")
    file = open_through(content.open(), str(path))
    content.opened()
    return file


def read_array(file: h5py.File, field: Field, length: int) -> NDArray[Any]:
    """The values of an array feature, (length, ...), C order, little endian."""
    values = _read(dataset(file, field.path), field.path, field.first_row, field.first_row + length)
    return np.ascontiguousarray(values, np.dtype(field.feature.dtype).newbyteorder("<"))


def read_jpegs(file: h5py.File, field: Field, length: int, content: SourceBytes | None = None) -> Iterator[bytes]:
    """The JPEG files of a camera, verbatim, without padding.

    Args:
        file: The source.
        field: The camera.
        length: Of the episode.
        content: The bytes of the source, if they are at hand.

    Raises:
        LayoutError: At a frame that is cut off, is no JPEG or has another size than the first.
    """
    announced = _announced_lengths(file, field)
    num_channels = field.feature.shape[2]
    found = dataset(file, field.path)
    stored = stored_rows(found, content, field.first_row, length)
    for step, row in _rows(found, field.first_row, length) if stored is None else enumerate(stored):
        where = f"{field.path}, step {step}"
        data = row_bytes(row)
        candidates = () if announced is None or step >= announced.shape[1] else announced[:, step].tolist()
        data = data[: true_end(data, candidates, where)]
        try:
            height, width, channels = jpeg_shape(data, where)
        except FormatError as error:
            raise LayoutError(str(error)) from error
        if (height, width) != field.feature.shape[:2] or channels > num_channels:
            found = picture_size((height, width, channels))
            raise LayoutError(f"{where}: a JPEG of {found}, wanted {picture_size(field.feature.shape)}")
        yield data


def read_frames(file: h5py.File, field: Field, length: int) -> Iterator[NDArray[Any]]:
    """The frames of a raw camera, each (H, W, C), valid until the next one is asked for."""
    for _, row in _rows(dataset(file, field.path), field.first_row, length):
        yield upright(row, field.axes).reshape(field.feature.shape)


def upright(frame: NDArray[Any], axes: tuple[int, ...]) -> NDArray[Any]:
    """A stored frame as (H, W, C), C order; what has these axes is given back as it is."""
    return np.ascontiguousarray(frame.transpose(axes)) if axes else frame


def _rows(found: h5py.Dataset, first_row: int, length: int) -> Iterator[tuple[int, Any]]:
    # Of rows of variable length nobody knows the size before they are read; all of them may be the same large bytes.
    row_size = SLAB_BYTES // _VARIABLE_ROWS if found.dtype.kind == "O" else max(1, found.nbytes // max(1, len(found)))
    slab = max(1, SLAB_BYTES // row_size)
    for start in range(0, length, slab):
        stop = min(start + slab, length)
        yield from enumerate(_read(found, str(found.name), first_row + start, first_row + stop), start)


def _read(found: h5py.Dataset, path: str, start: int, stop: int) -> Any:
    """Rows of a dataset.

    Raises:
        SourceError: If HDF5 cannot read them: a damaged chunk, a missing filter, a file cut off since it was opened.
    """
    try:
        return found[start:stop]
    except CANNOT_OPEN as error:
        raise SourceError(
            f"{found.file.filename}: {path}, rows {start} to {stop - 1}: cannot be read ({first_line(error)}). "
            f"{_REMEDY}"
        ) from error


def _announced_lengths(file: h5py.File, field: Field) -> NDArray[np.int64] | None:
    """(cameras, T) lengths; the files hold them as float32."""
    if field.lengths_path is None:
        return None
    values = np.asarray(small_value(file, field.lengths_path))
    if values.ndim != 2 or values.dtype.kind not in "iuf":
        raise LayoutError(f"{field.lengths_path}: shape {values.shape}, wanted (cameras, steps)")
    lengths: NDArray[np.int64] = np.nan_to_num(values).astype(np.int64)
    return lengths
