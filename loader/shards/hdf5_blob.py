"""The packed bytes of episodes in an HDF5 file, read where they lie: what a shard's tar is to a reader.

`epistream.sharding.hdf5.index` says what packed bytes are, and what the places of their extents mean.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.bodies import retries_of
from epistream.cache.source.blob import Blob, Supply
from epistream.cache.source.entry import Part
from epistream.cache.source.local import FileBlob
from epistream.cache.source.ranged import RangeBlob
from epistream.cache.source.remote import Remote
from epistream.cache.source.rows import as_bytes, check_range, check_starts
from epistream.errors import SourceChangedError, SourceError
from epistream.file_systems import local_path
from epistream.loader.shards.hdf5_rows import RowMaker
from epistream.plain_files import version_of_file
from epistream.sharding.files.versioned_files import version_and_bytes
from epistream.sharding.hdf5.index import FIRST_MADE, ZEROS, Extents

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Hdf5Supply(Supply):
    """Offers the packed bytes of a shard of an HDF5 file to the cache, see `epistream.cache.source.blob.Supply`.

    Args:
        url: The HDF5 file.
        index_url: Where the shard's index is kept.
        storage_options: For fsspec, if the file is remote.
    """

    url: str
    index_url: str
    storage_options: Mapping[str, Any] = field(default_factory=dict)

    def open(self) -> "Hdf5Blob":
        """As `Supply.open`."""
        return Hdf5Blob(self.url, self._extents(), self.storage_options)

    def local_ranges(self) -> Iterable[tuple[Path, int, int]]:
        """As `Supply.local_ranges`: from the first extent to the last."""
        path = local_path(self.url)
        return () if path is None else ((path, *_span(self._extents())),)

    def _extents(self) -> Extents:
        try:
            data = Path(self.index_url).read_bytes()
        except OSError as error:
            raise SourceError(
                f"{self.index_url}: {error.strerror}, wanted the index of {self.url}. Open the dataset again: it is "
                "made anew."
            ) from error
        return Extents.parse(data, self.index_url)


class Hdf5Blob(Blob):
    """Reads packed bytes: those in the file by ranges, the others as `RowMaker` makes them.

    Raises:
        SourceChangedError: The file is not the one that was indexed; also raised by every read of a local file once
            it was replaced, truncated or written to.
        SourceError: It cannot be opened.
    """

    def __init__(self, url: str, extents: Extents, storage_options: Mapping[str, Any]) -> None:
        self.size = extents.packed_bytes
        self.url = url
        self._start = extents.start.astype(np.int64)
        self._stop = np.append(self._start[1:], self.size)
        self._place = extents.place
        self._is_simple = bool((self._place >= 0).all())
        self._file = _open_file(url, extents, storage_options)
        self._maker = RowMaker(url, extents, self._file, storage_options)

    def read_into(self, offset: int, out: memoryview | NDArray[np.uint8]) -> None:
        """Fill `out` (contiguous bytes) from `offset`."""
        target = as_bytes(out)
        check_range(self.url, self.size, offset, len(target))
        first = int(np.searchsorted(self._start, offset, side="right")) - 1
        stop = offset + len(target)
        end = int(self._stop[first])
        place = int(self._place[first])
        if stop <= end and place >= 0:
            self._file.read_into(place + offset - int(self._start[first]), target)
            return
        last = int(np.searchsorted(self._start, max(offset, stop - 1), side="right"))
        self._read_extents(np.arange(first, last), offset, target)

    def read_each(self, offsets: Sequence[int], targets: Sequence[memoryview]) -> None:
        """As `read_into` for several places, looking only once whether a local file changed."""
        starts = np.asarray(offsets, np.int64)
        extent = np.searchsorted(self._start, starts, side="right") - 1
        place = self._place[extent]
        stops = starts + [len(target) for target in targets]
        lies_whole = (place >= 0) & (starts >= 0) & (stops <= self._stop[extent])
        if lies_whole.all():
            self._file.read_each((place + starts - self._start[extent]).tolist(), targets)
            return
        super().read_each(offsets, targets)

    def check_unchanged(self) -> None:
        """Look whether a local file changed."""
        self._file.check_unchanged()

    def gather(self, starts: Int64, out: NDArray[np.uint8]) -> None:
        """Row i of `out` (n, width), C-contiguous, becomes bytes [starts[i], starts[i] + width)."""
        if out.size == 0:
            return
        width = out.shape[1]
        check_starts(self.url, self.size, starts, width)
        extent = np.searchsorted(self._start, starts, side="right") - 1
        place, inside = self._place[extent], starts - self._start[extent]
        if self._is_simple:
            self._file.gather(place + inside, out)
            return
        in_file = np.flatnonzero(place >= 0)
        found = np.empty((len(in_file), width), np.uint8)
        self._file.gather((place + inside)[in_file], found)
        out[in_file] = found
        out[place == ZEROS] = 0
        elsewhere = np.flatnonzero(place <= FIRST_MADE)
        numbers = FIRST_MADE - place[elsewhere]
        rows = self._maker.rows(np.unique(numbers))
        for row, number, begin in zip(elsewhere.tolist(), numbers.tolist(), inside[elsewhere].tolist(), strict=True):
            out[row] = np.frombuffer(rows[number], np.uint8)[begin : begin + width]

    def close(self) -> None:
        """Close the file. Harmless when called twice."""
        self._maker.close()
        self._file.close()

    def _read_extents(self, extents: Int64, offset: int, target: memoryview) -> None:
        """Fill `target`, which begins at `offset`, piece by piece; the rows that have to be made are made together."""
        stop = offset + len(target)
        places = self._place[extents]
        rows = self._maker.rows(FIRST_MADE - places[places <= FIRST_MADE])
        for extent in extents.tolist():
            first, end = max(offset, int(self._start[extent])), min(stop, int(self._stop[extent]))
            piece = target[first - offset : end - offset]
            inside, place = first - int(self._start[extent]), int(self._place[extent])
            if place >= 0:
                self._file.read_into(place + inside, piece)
            elif place == ZEROS:
                piece[:] = bytes(len(piece))
            else:
                piece[:] = rows[FIRST_MADE - place][inside : inside + len(piece)]


def _open_file(url: str, extents: Extents, storage_options: Mapping[str, Any]) -> Blob:
    """The file's own bytes, once it is sure that it is the file that was indexed."""
    path = local_path(url)
    if path is None:
        remote = Remote(storage_options, retries_of(storage_options))
        _check_version(url, version_and_bytes(url, storage_options)[0], extents)
        return RangeBlob(Part(url, extents.file_bytes, version=extents.version), remote, lambda _: None)
    _check_version(url, version_and_bytes(url)[0], extents)
    file = FileBlob(path, extents.file_bytes, _span(extents))
    # It may have been replaced since it was looked at.
    try:
        _check_version(url, version_of_file(file.status), extents)
    except SourceChangedError:
        file.close()
        raise
    return file


def _span(extents: Extents) -> tuple[int, int]:
    """From the first byte of the extents in the file to where the last of them begins."""
    places = extents.place[extents.place >= 0]
    return (int(places.min()), int(places.max())) if len(places) else (0, 0)


def _check_version(url: str, version: str, extents: Extents) -> None:
    if version != extents.version:
        raise SourceChangedError(
            f"{url}: {version}, wanted {extents.version}: it was replaced or written to since it was indexed. Open the "
            "dataset again to index it as it is now."
        )
