"""Attributes, texts and other small values of a source, as JSON can hold them, and what h5py says in one line."""

import json
from math import prod
from typing import Any

import h5py
import numpy as np

from epistream.errors import LayoutError
from epistream.sharding.layouts.judging import why_no_rows
from epistream.sharding.opening.walking import CANNOT_OPEN, go_on, names_in

# Simulator models of 100 kB and more ride in attributes; they are named in `left_out` and not copied.
MAX_ATTRIBUTE_CHARS = 16_384
_MAX_ATTRIBUTE_BYTES = 1 << 20
# Instructions, masks and rates are read whole.
_MAX_TEXT_BYTES = 64 << 20


def dataset(file: h5py.File, path: str) -> h5py.Dataset:
    """The dataset at `path`.

    Raises:
        LayoutError: If there is none, or it cannot be opened.
    """
    try:
        found = file[path]
    except CANNOT_OPEN as error:
        raise LayoutError(f"{path}: cannot be opened ({first_line(error)}), wanted a dataset") from error
    if not isinstance(found, h5py.Dataset):
        raise LayoutError(f"{path}: is a group, wanted a dataset")
    return found


def read_attributes(*nodes: h5py.Group) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The attributes of `nodes` as JSON can hold them (later nodes win), and the paths of those that are not copied."""
    values: dict[str, Any] = {}
    left_out = []
    for node in nodes:
        for name in names_in(node.attrs):
            go_on(f"{node.name}: attributes")
            value = attribute(node, name)
            if value is None or len(json.dumps(value)) > MAX_ATTRIBUTE_CHARS:
                left_out.append(f"{node.name.rstrip('/')}/@{whole_text(name)}")
            else:
                values[whole_text(name)] = value
    return values, tuple(left_out)


def text_attribute(node: h5py.Group, name: str) -> str | None:
    """An attribute as text, or None if it is missing or no text."""
    value = attribute(node, name)
    return value if isinstance(value, str) else None


def texts(value: Any) -> tuple[str, ...]:
    """Every text in a value from the source: a scalar, a list of bytes, or JSON that holds such a list."""
    value = plain(value)
    if isinstance(value, str):
        stripped = value.strip()
        if stripped[:1] in ('"', "["):
            try:
                return texts(json.loads(stripped))
            except (ValueError, RecursionError):
                pass
        return (stripped.strip("\"'"),) if stripped.strip("\"'") else ()
    if isinstance(value, list):
        return tuple(text for item in value for text in texts(item))
    return ()


def plain(value: Any) -> Any:
    """A value of h5py or numpy as JSON can hold it; None if it cannot."""
    if isinstance(value, bytes | str):
        return value.decode("utf-8", "replace") if isinstance(value, bytes) else whole_text(value)
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()] if value.ndim else plain(value[()])
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        # JSON has no NaN; as text it survives.
        return value if np.isfinite(value) else str(value)
    return value if isinstance(value, bool | int) else None


def whole_text(text: str) -> str:
    """`text` without the halves of characters that h5py makes of bytes that are no UTF-8: no file can hold those."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def attribute(node: h5py.Group, name: str) -> Any:
    """An attribute as JSON can hold it; None if there is none, or it is too large or of a type that cannot be read."""
    try:
        is_small = node.attrs.get_id(name).get_storage_size() <= _MAX_ATTRIBUTE_BYTES
        return plain(node.attrs[name]) if is_small else None
    except (*CANNOT_OPEN, RecursionError, UnicodeError):
        return None


def small_value(file: h5py.File, path: str) -> Any:
    """What a dataset of a few texts or numbers holds.

    Raises:
        LayoutError: If it cannot be read, or is too large for that.
    """
    return value_of(dataset(file, path), path)


def value_of(found: h5py.Dataset, path: str) -> Any:
    """As `small_value`, of a dataset that is open; `path` is for messages."""
    if why_no_rows(found) not in (None, "a single value"):
        return None
    if prod(map(int, found.shape)) * found.dtype.itemsize > _MAX_TEXT_BYTES:
        raise LayoutError(f"{path}: {found.dtype} {found.shape}, wanted a few texts or numbers")
    try:
        return found[()]
    except CANNOT_OPEN as error:
        raise LayoutError(f"{path}: cannot be read ({first_line(error)}), wanted a few texts or numbers") from error


def first_line(error: BaseException) -> str:
    """What h5py says, in one line."""
    return (str(error) or type(error).__name__).strip("'\"").splitlines()[0]
