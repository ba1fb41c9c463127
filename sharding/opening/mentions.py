"""What an HDF5 file says of other files: links, virtual datasets, external storage. Looking follows none of them."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

import h5py
import numpy as np
from h5py import h5d, h5g, h5l, h5o, h5s

from epistream.errors import LayoutError

Kind = Literal["external link", "virtual dataset", "external storage"]

# A mapping that stands for any number of files or datasets has this in their names, replaced by 0, 1, 2, ...
BLOCK = "%b"
_SAME_FILE = "."
# Beyond this many rows a virtual dataset is not looked at row by row; nobody records so many steps in one.
_MAX_ROWS = 1 << 24
# A hundred thousand datasets take two seconds.
_LOOK_S = 60.0


@dataclass(frozen=True)
class Mention:
    """One other file that a file names.

    Args:
        path: Where it does so, from its own root.
        kind: How.
        file: The other one's name as written; of a virtual dataset ``.`` is the file itself.
        target: Path of the object there; empty for external storage, which is bytes.
        reach: Of a virtual dataset what the source must have along each axis at least, of external storage its bytes.
        points: Elements that the source must have, where all of it is taken; -1 where not.
    """

    path: str
    kind: Kind
    file: str
    target: str = ""
    reach: tuple[int, ...] = ()
    points: int = -1

    @property
    def is_elsewhere(self) -> bool:
        """Whether it is another file."""
        return self.kind != "virtual dataset" or self.file != _SAME_FILE


def mentions(file: h5py.File) -> list[Mention]:
    """Everything that an open file names, each once.

    Raises:
        LayoutError: If a virtual dataset has steps that come from no source, or looking takes longer than a minute.
    """
    return list(dict.fromkeys(_walk(file)))


def _walk(file: h5py.File) -> list[Mention]:
    named: list[Mention] = []
    waiting = [("/", h5g.open(file.id, b"/"))]
    seen: set[int] = set()  # groups may hold each other
    deadline = time.monotonic() + _LOOK_S
    while waiting:
        folder, group = waiting.pop()
        if time.monotonic() > deadline:
            raise LayoutError(
                f"{folder}: still looking after {_LOOK_S:g} s, wanted groups that can be looked through in that time. "
                "Leave the file out, or write what is needed of it into another file"
            )
        links: list[tuple[bytes, int, int]] = []
        group.links.iterate(lambda name, info, found=links: found.append((name, info.type, info.u)), info=True)
        for name, kind, address in links:
            path = folder + os.fsdecode(name)
            if kind == h5l.TYPE_EXTERNAL:
                other, target = group.links.get_val(name)
                named.append(Mention(path, "external link", os.fsdecode(other), os.fsdecode(target)))
            if kind != h5l.TYPE_HARD or address in seen:
                continue
            seen.add(address)
            try:
                found = h5o.open(group, name)
                if isinstance(found, h5g.GroupID):
                    waiting.append((f"{path}/", found))
                elif isinstance(found, h5d.DatasetID):
                    named += _of_dataset(path, found)
            except LayoutError:
                raise
            except (OSError, RuntimeError, KeyError, TypeError, ValueError):
                continue  # the fault of whoever needs it; the rest of the file may be sound
    return named


def _of_dataset(path: str, found: h5d.DatasetID) -> Iterator[Mention]:
    plist = found.get_create_plist()
    layout = plist.get_layout()
    if layout == h5d.VIRTUAL:
        yield from _sources(path, found, plist)
    elif layout == h5d.CONTIGUOUS and plist.get_external_count():
        left = prod(found.shape) * found.get_type().get_size()
        for number in range(plist.get_external_count()):
            name, offset, size = plist.get_external(number)
            taken = min(left, size)
            left -= taken
            yield Mention(path, "external storage", os.fsdecode(name), reach=(offset + taken,))


def _sources(path: str, found: h5d.DatasetID, plist: h5py.h5p.PropDCID) -> Iterator[Mention]:
    """The sources of a virtual dataset; several pieces of one count together."""
    count = plist.get_virtual_count()
    spaces = [plist.get_virtual_vspace(number) for number in range(count)]
    # The shape of one that grows with its sources is only known by opening them.
    if not any(map(_is_unlimited, spaces)):
        _check_steps(path, found.shape, spaces)
    reaches: dict[tuple[str, str, int], tuple[int, ...]] = {}
    for number, space in enumerate(spaces):
        source = plist.get_virtual_srcspace(number)
        takes_all = source.get_select_type() == h5s.SEL_ALL
        points = space.get_select_npoints() if takes_all and not _is_unlimited(space) else -1
        reach = (
            () if takes_all or _is_unlimited(source) else tuple(int(end) + 1 for end in source.get_select_bounds()[1])
        )
        key = plist.get_virtual_filename(number), plist.get_virtual_dsetname(number), points
        before = reaches.get(key, ())
        reaches[key] = tuple(map(max, reach, before)) if len(before) == len(reach) else reach or before
    for (name, target, points), reach in reaches.items():
        yield Mention(path, "virtual dataset", name, target, reach, points)


def _is_unlimited(space: h5s.SpaceID) -> bool:
    if space.get_select_type() != h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        return False
    _, _, counts, blocks = space.get_regular_hyperslab()
    return h5s.UNLIMITED in (*counts, *blocks)


def _check_steps(path: str, shape: tuple[int, ...], spaces: list[h5s.SpaceID]) -> None:
    """See that each step of a virtual dataset comes from somewhere.

    What is left open within steps is the fill value that its writer chose, as in any other dataset; a whole step of it
    was never recorded.
    """
    if not shape or not 0 < shape[0] <= _MAX_ROWS:
        return
    covered = np.zeros(shape[0], bool)
    for space in spaces:
        kind = space.get_select_type()
        if kind == h5s.SEL_ALL:
            covered[:] = True
        elif kind == h5s.SEL_HYPERSLABS and space.is_regular_hyperslab():
            start, stride, count, block = (int(values[0]) for values in space.get_regular_hyperslab())
            starts = start + stride * np.arange(count)
            for inside in range(block) if block <= count else ():
                covered[starts + inside] = True
            for first in starts.tolist() if block > count else ():
                covered[first : first + block] = True
        elif kind != h5s.SEL_NONE:
            low, high = space.get_select_bounds()
            covered[int(low[0]) : int(high[0]) + 1] = True
    if not covered.all():
        first = int(np.argmin(covered))
        raise LayoutError(
            f"{path}: step {first} of {shape[0]} of this virtual dataset comes from no source, {int((~covered).sum())} "
            "steps in all, and HDF5 would give the fill value for them; wanted every step. Write the virtual dataset "
            "again, with all of its sources, or as long as these are"
        )
