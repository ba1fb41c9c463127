"""Says of a dataset, in words and without reading it, why it can be no feature, or why its size cannot be true."""

from math import prod
from typing import Any

import h5py
import numpy as np

from epistream.sharding.format.features import DTYPES
from epistream.units import size_text

# What a dataset may hold without a look at what the file stores of it. Arrays are read whole, and their statistics take
# nine times as much memory as they do; frames are read in slabs.
_TRUSTED_BYTES = {"array": 64 << 20, "frames": 512 << 20}
_MAX_CHUNK_BYTES = 512 << 20
_TRUSTED_ROWS = 1 << 22
# What may be unpacked of each byte in the file beyond that. Black frames compress by more than gzip's 1,000.
_MOST_PER_BYTE = {"array": 50, "frames": 10_000}


def why_no_numbers(found: h5py.Dataset) -> str | None:
    """What a dataset is instead of numbers, step after step; None if it is that."""
    why = why_no_rows(found)
    if why:
        return why
    if found.dtype.name not in DTYPES or found.id.get_type().get_class() == h5py.h5t.BITFIELD:
        return _type_in_words(found.dtype) if found.dtype.name not in DTYPES else "a bit field"
    if found.ndim > 5:
        return f"{found.ndim} axes"
    return "rows without values" if 0 in found.shape[1:] else None


def why_no_rows(found: h5py.Dataset) -> str | None:
    """What a dataset is instead of rows of a type that numpy has; None if it is that."""
    if found.shape is None:
        return "empty"
    try:
        _ = found.dtype
    except (TypeError, ValueError, OSError, RuntimeError):
        return "of a type that h5py cannot read"
    return None if found.shape else "a single value"


def why_too_large(found: h5py.Dataset, kind: str) -> str | None:
    """Why a dataset of such a size cannot be read, without reading any of it; None if it can.

    What was never written is the fill value in HDF5, and no fault: a few numbers in a file can declare terabytes of it,
    though. So what is large must be there, in a proportion that compression can reach.

    Args:
        found: Any rows.
        kind: ``frames`` are read in slabs, an ``array`` whole.
    """
    item_bytes = found.dtype.itemsize
    num_bytes = prod(map(int, found.shape)) * item_bytes
    chunks = found.chunks
    if chunks and prod(map(int, chunks)) * item_bytes > _MAX_CHUNK_BYTES and found.id.get_create_plist().get_nfilters():
        chunk = size_text(prod(map(int, chunks)) * item_bytes)
        return f"compressed in chunks of {chunk}, wanted {size_text(_MAX_CHUNK_BYTES)} at most"
    if num_bytes <= _TRUSTED_BYTES[kind] and found.shape[0] <= _TRUSTED_ROWS:
        return None
    stored = _stored_bytes(found)
    if stored * _MOST_PER_BYTE[kind] >= num_bytes:
        return None
    return f"declares {found.shape[0]:,} rows and {num_bytes:,} bytes, of which the file stores {stored:,}"


def _stored_bytes(found: h5py.Dataset) -> int:
    if found.is_virtual:
        item_bytes = found.dtype.itemsize
        return sum(int(source.vspace.get_select_npoints()) * item_bytes for source in found.virtual_sources())
    stored = int(found.id.get_storage_size())
    # A contiguous dataset announces its bytes, whether the file has them or not.
    return stored if found.external else min(stored, int(found.file.id.get_filesize()))


def _type_in_words(dtype: np.dtype[Any]) -> str:
    if dtype.names:
        return f"a compound of {', '.join(dtype.names[:4])}{', ...' if len(dtype.names) > 4 else ''}"
    if h5py.check_ref_dtype(dtype):
        return "references"
    if dtype.kind in "SU" or h5py.check_string_dtype(dtype):
        return "texts"
    if h5py.check_vlen_dtype(dtype):
        return "rows of variable length"
    if dtype.subdtype:
        return f"elements that are arrays of {dtype.subdtype[1]}"
    return f"opaque ({dtype.name})" if dtype.kind == "V" else str(dtype.name)
