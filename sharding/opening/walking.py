"""Walks over the groups of a source file, whatever their links do, for no longer than a person would wait."""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import h5py

from epistream.errors import LayoutError

Node: TypeAlias = h5py.Dataset | h5py.Group

# A file of a thousand demonstrations is looked through in seconds, from a slow network in half a minute.
LOOK_S = 60.0
# What h5py raises for what cannot be opened, with every kind of damage that was tried; see `meant` for the last.
CANNOT_OPEN = (KeyError, OSError, RuntimeError, TypeError, ValueError, MemoryError, OverflowError, SystemError)

_deadline: ContextVar[float | None] = ContextVar("epistream_look", default=None)


def meant(error: BaseException) -> BaseException:
    """The error of the file object that HDF5 reads through, which h5py's `in` turns into a SystemError."""
    return error.__cause__ if isinstance(error, SystemError) and error.__cause__ is not None else error


@contextmanager
def patience() -> Iterator[None]:
    """Bound the time for what is looked at inside: finding the episodes of a file, or describing one of them."""
    token = _deadline.set(time.monotonic() + LOOK_S)
    try:
        yield
    finally:
        _deadline.reset(token)


def go_on(where: str) -> None:
    """Called at every step of a search.

    Raises:
        LayoutError: If it has taken too long.
    """
    deadline = _deadline.get()
    if deadline is not None and time.monotonic() > deadline:
        raise LayoutError(
            f"{where}: still looking after {LOOK_S:g} s, wanted groups that can be looked through in that time. "
            "Leave the file out, or write what is needed of it into another file"
        )


def tree(group: h5py.Group, skip: Collection[str] = ()) -> Iterator[tuple[str, Node | None]]:
    """Everything below `group` in the order of names, parents first; None for what cannot be opened.

    What directly in `group` has a name in `skip` is not looked at.

    Soft and external links are followed. No group is entered twice, so that links that go round in a circle end.
    """
    entered = {_address(group)}
    waiting = [("", name, group) for name in reversed(names_in(group)) if name not in skip]
    while waiting:
        head, name, parent = waiting.pop()
        path = head + name
        go_on(path)
        node = child(parent, name)
        if node is None:
            yield path, None
        elif isinstance(node, h5py.Group):
            address = _address(node)
            if address in entered:
                continue
            entered.add(address)
            yield path, node
            waiting += [(f"{path}/", below, node) for below in reversed(names_in(node))]
        else:
            yield path, node


def names_in(holder: h5py.Group | h5py.AttributeManager) -> list[str]:
    """The names in a group, or of attributes, in order. Bytes that are no UTF-8 become a name that cannot be opened."""
    return sorted(name if isinstance(name, str) else name.decode("utf-8", "replace") for name in holder)


def child(group: h5py.Group, name: str) -> Node | None:
    """What is at `name` in a group; None if there is nothing, or nothing that can be opened."""
    try:
        node = group[name]
    except CANNOT_OPEN:
        return None
    # What else there is describes a type.
    return node if isinstance(node, h5py.Dataset | h5py.Group) else None


def datasets_in(group: h5py.Group, skip: Collection[str] = ()) -> list[str]:
    """The paths of all datasets below `group`, and of what cannot be opened there, in a fixed order; see `tree`."""
    return [path for path, node in tree(group, skip) if not isinstance(node, h5py.Group)]


def _address(group: h5py.Group) -> tuple[int, int]:
    info = h5py.h5o.get_info(group.id)
    return info.fileno, info.addr
