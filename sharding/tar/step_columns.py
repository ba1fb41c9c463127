"""One feature over all steps of a tar: rows that are collected into the index, or pictures that stay where they are."""

from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.format.features import Feature, feature_from_dict
from epistream.sharding.pictures.codec import Codec
from epistream.sharding.pictures.codecs import codec_of_suffix
from epistream.sharding.tar.step_mapping import StepFeature
from epistream.sharding.tar.step_samples import Sample
from epistream.sharding.tar.tar_reader import read_member


class Rows:
    """Numbers, collected one step after the other."""

    def __init__(self, wanted: StepFeature) -> None:
        self._wanted = wanted
        self._first = ""
        self._dtype: np.dtype[Any] | None = None
        self._shape: tuple[int, ...] = ()
        self._rows: list[NDArray[Any]] = []

    def add(self, file: BinaryIO, sample: Sample) -> None:
        """The next row. In JSON a whole number among others is one of them.

        Raises:
            FormatError: If the sample lacks it, or it has another shape or type than the first one.
        """
        array = sample.array(file, self._wanted.origin)
        if self._dtype is None:
            self._first, self._dtype, self._shape = sample.where, array.dtype, array.shape
        elif self._wanted.origin.kind == "json" and {array.dtype.kind, self._dtype.kind} == {"i", "f"}:
            self._dtype = np.dtype(np.float64)
        elif array.dtype != self._dtype:
            raise self._odd(sample, array)
        if array.shape != self._shape:
            raise self._odd(sample, array)
        self._rows.append(array)

    def feature(self, fps: float | None, where: str) -> Feature:
        """The array feature."""
        assert self._dtype is not None
        described = {"kind": "array", "codec": "npy", "dtype": self._dtype.name, "shape": self._shape}
        return _feature(self._wanted, described, fps, where)

    def values(self) -> NDArray[np.uint8]:
        """(steps, bytes of a step), little endian."""
        assert self._dtype is not None
        stacked = np.stack(self._rows).astype(self._dtype.newbyteorder("<"), order="C")
        return stacked.reshape(len(stacked), -1).view(np.uint8)

    def _odd(self, sample: Sample, array: NDArray[Any]) -> FormatError:
        return FormatError(
            f"{sample.where}: {self._wanted.name} is {array.dtype} {array.shape}, wanted {self._dtype} {self._shape} "
            f"as in {self._first}."
        )


class Pictures:
    """Frames that are members of the tar: where each lies."""

    def __init__(self, wanted: StepFeature) -> None:
        self._wanted = wanted
        suffix = "." + wanted.origin.member.rpartition(".")[2]
        codec = codec_of_suffix(suffix)
        assert codec is not None  # mappings with other members are refused
        self._codec: type[Codec] = codec
        self._first = ""
        self._found: tuple[str, tuple[int, ...]] = ("", ())
        self.offsets: list[int] = []
        self.sizes: list[int] = []

    def add(self, file: BinaryIO, sample: Sample) -> None:
        """The next picture. Its header is read, so that one of another size is found now and not in training.

        Raises:
            FormatError: If the sample lacks it, or it has another size or type than the first one.
        """
        member, where = sample.member(self._wanted.origin), f"{sample.where}.{self._wanted.origin.member}"
        offset, size = member.offset, member.size
        if self._codec.storage == "array":
            header = sample.npy_header(file, self._wanted.origin)
            if len(header.shape) not in (2, 3):
                raise FormatError(f"{where}: {header.dtype} {header.shape}, wanted a picture of (H, W) or (H, W, C).")
            found: tuple[str, tuple[int, ...]] = (header.dtype, (*header.shape, 1)[:3])
            offset, size = offset + header.data_offset, size - header.data_offset
        else:
            if not 0 < size < 1 << 32:
                raise FormatError(f"{where}: {size:,} bytes, wanted a picture of less than 4 GiB.")
            found = self._codec.announced(read_member(file, member), where)
        if not self.offsets:
            self._first, self._found = sample.where, found
        elif self._codec.has_channel_order and found[1][:2] == self._found[1][:2]:
            self._found = max(self._found, found)  # a grey one among coloured ones is three equal channels
        elif found != self._found:
            raise FormatError(
                f"{where}: {found[0]} {found[1]}, wanted {self._found[0]} {self._found[1]} as in {self._first}."
            )
        self.offsets.append(offset)
        self.sizes.append(size)

    def feature(self, fps: float | None, where: str) -> Feature:
        """The camera. A JPEG is taken for what JPEGs are, RGB, unless the mapping says otherwise."""
        described = {"kind": "frames", "codec": self._codec.name, "dtype": self._found[0], "shape": self._found[1]}
        if self._codec.has_channel_order:
            described["jpeg_channels"] = self._wanted.jpeg_channels
        return _feature(self._wanted, {**described, "rotate": self._wanted.rotate}, fps, where)


def column_of(wanted: StepFeature) -> "Rows | Pictures":
    """What takes the steps of a feature."""
    make: Callable[[StepFeature], Rows | Pictures] = Pictures if wanted.is_camera else Rows
    return make(wanted)


def _feature(wanted: StepFeature, described: dict[str, Any], fps: float | None, where: str) -> Feature:
    said = {"name": wanted.name, **described, "fps": fps, "source_path": str(wanted.origin)}
    return feature_from_dict(said, where)
