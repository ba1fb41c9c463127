"""The header of a ``.npy`` file: written, and read without trusting it and without reading the data."""

import io
import math
from dataclasses import dataclass

import numpy as np

from epistream.errors import FormatError
from epistream.sharding.format.features import DTYPES, Feature

# What numpy writes fits in 128 bytes for our shapes; a longer header is padding or an attack.
HEADER_LIMIT = 4096


@dataclass(frozen=True)
class NpyHeader:
    """dtype (name), whole shape, and where the data begins in the file."""

    dtype: str
    shape: tuple[int, ...]
    data_offset: int


def read_npy_header(start: bytes, size: int, where: str) -> NpyHeader:
    """The header of a ``.npy`` file of `size` bytes that begins with `start`.

    Raises:
        FormatError: If it is no such file, holds objects or texts, is big endian or in Fortran order, or has
            another size than its header says.
    """
    file = io.BytesIO(start[:HEADER_LIMIT])
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, is_fortran, dtype = read(file, max_header_size=HEADER_LIMIT)
    except KeyError as error:
        raise FormatError(f"{where}: .npy version {error}, wanted 1.0 or 2.0.") from error
    except Exception as error:  # the header is a Python literal, parsed by numpy: many things can be wrong in it
        raise FormatError(f"{where}: no .npy file ({error}), wanted one.") from error
    if dtype.name not in DTYPES or dtype.byteorder == ">":
        raise FormatError(f"{where}: dtype {dtype.str!r}, wanted little-endian numbers.")
    if is_fortran and sum(axis > 1 for axis in shape) > 1:
        raise FormatError(f"{where}: in Fortran order, wanted C order. Save np.ascontiguousarray(x).")
    header = NpyHeader(dtype.name, tuple(int(axis) for axis in shape), file.tell())
    wanted = header.data_offset + math.prod(header.shape) * dtype.itemsize
    if min(header.shape, default=0) < 0 or size != wanted:
        raise FormatError(f"{where}: {size:,} bytes, wanted {wanted:,} for {dtype.name} {shape}.")
    return header


def npy_header(feature: Feature, num_steps: int) -> bytes:
    """What stands before the values in a ``.npy`` member; its length is a multiple of 64."""
    dtype = np.dtype(feature.dtype).newbyteorder("<")
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {(num_steps, *feature.shape)}, }}"
    text += " " * (-(len(text) + 11) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode("ascii")
