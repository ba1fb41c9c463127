"""Bytes scattered over several files as pieces, and who supplies them; for tests in several processes too."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from epistream.cache.source.blob import Blob, Supply
from epistream.cache.source.pieces import PieceFile, Pieces, ranges_of
from epistream.cache.source.pieces_blob import PiecesBlob
from epistream.plain_files import version_of_file


@dataclass(frozen=True)
class Scattered:
    """What files hold, and where in them the pieces of some bytes are."""

    contents: tuple[bytes, ...]
    num_bytes: int
    start: np.ndarray
    file: np.ndarray
    place: np.ndarray

    def pieces(self, files: Iterable[PieceFile]) -> Pieces:
        return Pieces(tuple(files), self.num_bytes, self.start, self.file, self.place)

    def write_to(self, folder: Path) -> Pieces:
        """The pieces, in files of a folder."""
        paths = [folder / f"{number}.bin" for number in range(len(self.contents))]
        for path, content in zip(paths, self.contents, strict=True):
            path.write_bytes(content)
        return self.pieces(PieceFile(str(path), path.stat().st_size, version_of_file(path.stat())) for path in paths)

    def at(self, url: str) -> Pieces:
        """The pieces, in files below a URL, which somebody serves."""
        return self.pieces(
            PieceFile(f"{url}/{number}.bin", len(content), "1") for number, content in enumerate(self.contents)
        )

    def served(self) -> dict[str, bytes]:
        """The files by path."""
        return {f"/{number}.bin": content for number, content in enumerate(self.contents)}


def scatter(data: bytes, num_files: int, num_pieces: int, *, seed: int = 0, gap_bytes: int = 7) -> Scattered:
    """Cut at random, some pieces empty; scattered at random, gaps between some; each file is used."""
    draw = np.random.default_rng(seed)
    start = np.sort(draw.integers(0, len(data) + 1, num_pieces - 1))
    start = np.insert(start, 0, 0)
    start[num_pieces // 2] = start[num_pieces // 2 - 1]  # one of no bytes
    stop = np.append(start[1:], len(data))
    file = np.append(np.arange(num_files), np.sort(draw.integers(0, num_files, num_pieces - num_files)))
    place = np.zeros(num_pieces, np.int64)
    contents = [bytearray() for _ in range(num_files)]
    for piece in range(num_pieces):
        content = contents[file[piece]]
        content += bytes(gap_bytes * int(draw.integers(0, 2)))
        place[piece] = len(content)
        content += data[start[piece] : stop[piece]]
    return Scattered(tuple(map(bytes, contents)), len(data), start.astype(np.int64), file.astype(np.int64), place)


@dataclass(frozen=True)
class PiecesSupply(Supply):
    """Supplies pieces as they are."""

    url: str
    where: Pieces

    def open(self) -> Blob:
        return PiecesBlob(self.url, self.where)

    def pieces(self) -> Pieces:
        return self.where

    def local_ranges(self) -> Iterable[tuple[Path, int, int]]:
        return ranges_of(self.where)
