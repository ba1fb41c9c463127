"""Where a layout file finds a text or a value: a dataset, or an attribute of a group or dataset; also inside JSON.

instruction            the dataset of this name in the episode
"@instruction"         an attribute of the episode's group (of the file, where a file is one episode)
"meta@instruction"     an attribute of what is at this path in the episode, a group or a dataset
"/data@instruction"    paths that begin with a stroke begin at the file: "/@instruction" is an attribute of the file
"@ep_meta[lang]"       what JSON has under a key; "[a][b]" goes on inside it
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

from epistream.errors import LayoutError
from epistream.sharding.layouts.judging import why_no_rows
from epistream.sharding.layouts.values import first_line, plain, texts
from epistream.sharding.opening.walking import CANNOT_OPEN, child, names_in

Scalar = bool | int | float | str

_KEYS = re.compile(r"((?:\[[^\[\]]+\])*)$")
# Instructions are sentences; a dataset of more is something else.
_MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class Place:
    """One of the forms above.

    Args:
        path: From the episode's group, or from the file if it begins with a stroke; empty is the group itself.
        attribute: Its name; None for what the dataset holds.
        keys: Inside JSON.
    """

    path: str
    attribute: str | None = None
    keys: tuple[str, ...] = ()

    @staticmethod
    def parse(text: str) -> "Place":
        """From ``data@info[lang]``."""
        inside = _KEYS.search(text)
        keys = inside[1] if inside else ""
        path, at, attribute = text.removesuffix(keys).partition("@")
        return Place(path, attribute if at else None, tuple(re.findall(r"\[([^\[\]]+)\]", keys)))

    def __str__(self) -> str:
        """As `parse` reads it."""
        attribute = "" if self.attribute is None else f"@{self.attribute}"
        return self.path + attribute + "".join(f"[{key}]" for key in self.keys)

    @property
    def problem(self) -> str:
        """Why it can be no place; empty if it can."""
        return "" if self.attribute or (self.attribute is None and self.path.strip("/")) else "names nothing"

    def texts(self, node: h5py.Group) -> tuple[str, ...] | None:
        """The texts there: one, or those of a list; None if there is nothing.

        Raises:
            LayoutError: If something else is there.
        """
        value = self._value(node)
        if value is None:
            return None
        found = texts(value)
        if not found and not (isinstance(value, str) and not value.strip()):
            raise LayoutError(f"{self._where(node)}: {_short(value)}, wanted a text, a list of texts or JSON of these")
        return found

    def scalar(self, node: h5py.Group) -> Scalar | None:
        """The one value there; None if there is nothing.

        Raises:
            LayoutError: If it is none.
        """
        value = self._value(node)
        while isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise LayoutError(f"{self._where(node)}: {_short(value)}, wanted one value")

    def _value(self, node: h5py.Group) -> Any:
        """As JSON can hold it; None if nothing is there."""
        where = self._where(node)
        target = node if not self.path else child(node, self.path)
        if target is None:
            return None
        try:
            if self.attribute is not None and self.attribute not in target.attrs:
                return None
            value = self._stored(target, where)
        except LayoutError:
            raise
        except CANNOT_OPEN as error:
            raise LayoutError(f"{where}: cannot be read ({first_line(error)}), wanted a text or a value") from error
        value = plain(_as_text(value))
        if value is None:
            raise LayoutError(f"{where}: of a type that JSON cannot hold, wanted a text or a value")
        for position, key in enumerate(self.keys):
            value = _json(value, where) if position == 0 else value
            if not isinstance(value, dict) or key not in value:
                found = f"the keys {', '.join(map(str, value))}" if isinstance(value, dict) else _short(value)
                raise LayoutError(f"{where}: found {found:.300}, wanted the key {key!r}")
            value = value[key]
        return "" if value is None else value

    def _stored(self, target: Any, where: str) -> Any:
        if self.attribute is not None:
            num_bytes = int(target.attrs.get_id(self.attribute).get_storage_size())
            if num_bytes > _MAX_TEXT_BYTES:
                raise LayoutError(f"{where}: {num_bytes:,} bytes, wanted a text or one value")
            return target.attrs[self.attribute]
        if not isinstance(target, h5py.Dataset):
            raise LayoutError(f"{where}: a group, wanted a dataset, or one of its attributes: '{self.path}@NAME'")
        why = why_no_rows(target)
        if why not in (None, "a single value"):
            raise LayoutError(f"{where}: {why}, wanted a text or one value")
        if target.nbytes > _MAX_TEXT_BYTES or target.dtype.names:
            raise LayoutError(f"{where}: {target.dtype} {target.shape}, wanted a text or one value")
        return target[()]

    def _where(self, node: h5py.Group) -> str:
        base = str(node.name).rstrip("/")
        return str(self) if self.path.startswith("/") else f"{base}/{self}"


def judge(node: h5py.Group, where: Sequence[tuple[str, tuple[Scalar, ...]]]) -> str:
    """Why an episode is left out by what a layout file wants of it; empty if it is not.

    Raises:
        LayoutError: If what decides is not there, or cannot be compared with what is wanted.
    """
    for text, wanted in where:
        place = Place.parse(text)
        found = place.scalar(node)
        if found is None:
            raise LayoutError(
                f"{place._where(node)}: not there, and 'where' of the layout file asks for it, found "
                f"{_attributes(node)}. Correct the name, or write the attribute"
            )
        alike = [one for one in wanted if _can_be_compared(found, one)]
        if not alike:
            raise LayoutError(
                f"{place._where(node)}: {json.dumps(found)}, which 'where' of the layout file compares with "
                f"{' or '.join(map(json.dumps, wanted))}. Write there what is wanted as the file has it"
            )
        if found not in alike:
            return f"{text} is {json.dumps(found)}"
    return ""


def _can_be_compared(found: Scalar, wanted: Scalar) -> bool:
    """Texts with texts, numbers with numbers; and 0 and 1 with false and true, since many writers know no others."""
    if isinstance(found, str) or isinstance(wanted, str):
        return isinstance(found, str) and isinstance(wanted, str)
    return not isinstance(wanted, bool) or isinstance(found, bool) or found in (0, 1)


def _attributes(node: h5py.Group) -> str:
    names = ", ".join(f"@{name}" for name in names_in(node.attrs)[:20])
    return names or "no attributes"


def _as_text(value: Any) -> Any:
    """Bytes that somebody kept as numbers or as an opaque value are a text; NUL padding is none."""
    if isinstance(value, np.void) and value.dtype.names is None:
        value = value.tobytes()
    if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 1 and len(value) > 1:
        try:
            text = value.tobytes().rstrip(b"\0").decode("utf-8")
        except UnicodeDecodeError:
            return value
        return text if text.isprintable() else value
    if isinstance(value, bytes):
        return value.rstrip(b"\0")
    return value


def _json(value: Any, where: str) -> Any:
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, str):
        raise LayoutError(f"{where}: {_short(value)}, wanted a text of JSON")
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise LayoutError(f"{where}: no JSON ({error}), wanted JSON with the key") from error


def _short(value: Any) -> str:
    return f"{value!r:.60}" if not isinstance(value, list | dict) else f"a {type(value).__name__} {value!r:.60}"
