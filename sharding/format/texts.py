"""Many texts in two arrays: nothing is made of them until somebody looks at one, and they pickle as arrays."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import overload

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.format.ragged import Int64, offsets_of, positions_of


class Texts(Sequence[str]):
    """N texts of any characters, UTF-8 one after the other. Equal to any sequence of the same texts.

    Args:
        data: (B,) uint8, all of them.
        offsets: (N + 1,) int64, where each begins and ends in `data`.
        where: Name of the file, with which messages begin.
        remedy: The next step that works, with which they end.

    Raises:
        FormatError: If the offsets do not rise from 0 to B; and on a look at a text that is no UTF-8.
    """

    def __init__(self, data: NDArray[np.uint8], offsets: NDArray[np.int64], where: str, remedy: str) -> None:
        self._data, self._offsets, self._where, self._remedy = data, offsets, where, remedy
        if (
            not len(offsets)
            or int(offsets[0]) != 0
            or int(offsets[-1]) != len(data)
            or (offsets[1:] < offsets[:-1]).any()
        ):
            raise FormatError(f"{where}: offsets of texts that do not rise, wanted 0 to {len(data)}. {remedy}")

    @classmethod
    def of(cls, texts: Iterable[str], where: str, remedy: str = "") -> "Texts":
        """The texts that there are already.

        Args:
            texts: These.
            where: What messages begin with.
            remedy: The next step that works.

        Raises:
            FormatError: If one has no UTF-8, such as a file name in another encoding.
        """
        try:
            parts = [text.encode() for text in texts]
        except UnicodeEncodeError as error:
            raise FormatError(
                f"{where}: {error.object!r:.120}, wanted text that UTF-8 can hold. Rename the file or correct the text."
            ) from error
        offsets = np.zeros(len(parts) + 1, np.int64)
        np.cumsum([len(part) for part in parts], out=offsets[1:])
        return cls(np.frombuffer(b"".join(parts), np.uint8), offsets, where, remedy)

    @classmethod
    def join(cls, parts: "Sequence[Texts]") -> "Texts":
        """One after the other; at least one."""
        data = np.concatenate([part._data for part in parts])
        counts = np.concatenate([np.diff(part._offsets) for part in parts])
        return cls(data, offsets_of(counts), parts[0]._where, parts[0]._remedy)

    def select(self, numbers: Int64) -> "Texts":
        """Some of them (n,), in that order."""
        data = self._data[positions_of(self._offsets, numbers)]
        return Texts(data, offsets_of(np.diff(self._offsets)[numbers]), self._where, self._remedy)

    @property
    def arrays(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """The data and the offsets."""
        return self._data, self._offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...
    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        if isinstance(index, slice):
            return tuple(self[number] for number in range(len(self))[index])
        number = range(len(self))[index]
        return self._text(self._data[self._offsets[number] : self._offsets[number + 1]].tobytes())

    def __iter__(self) -> Iterator[str]:
        data = self._data.tobytes()
        return (self._text(data[start:stop]) for start, stop in pairwise(self._offsets.tolist()))

    def _text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise FormatError(
                f"{self._where}: {data[:40]!r}, wanted a text in UTF-8 ({error}). {self._remedy}"
            ) from error

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self)) if len(self) <= 10 else f"<{len(self):,} texts: {self[0]!r} to {self[-1]!r}>"
