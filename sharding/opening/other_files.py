"""Other files that an HDF5 file reads from: where HDF5 finds them, whether they may be read, and whether all is there.

HDF5 itself asks nobody: it opens what a link, a virtual dataset or external storage names, wherever that is, and gives
the fill value for what is missing.
"""

import os
import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import h5py

from epistream.errors import LayoutError, SourceChangedError, SourceError
from epistream.plain_files import not_a_plain_file, version_of_file
from epistream.sharding.opening.mentions import BLOCK, Mention, mentions

_PREFIXES = {  # where HDF5 looks first, by how a file is named
    "external link": "HDF5_EXT_PREFIX",
    "virtual dataset": "HDF5_VDS_PREFIX",
    "external storage": "HDF5_EXTFILE_PREFIX",
}
_ALLOW = "allow_outside_files=True (--allow-outside-files)"
_MAX_KNOWN = 256


@dataclass(frozen=True)
class OtherFile:
    """A file that another one reads from.

    Args:
        path: Where it is, without symbolic links.
        version: What it was when it was found.
        is_outside: Whether it is outside of the folder of the file that the user gave.
        kind: How it is named, see `Mention`.
        name: As what.
        holder: In which file.
    """

    path: str
    version: str
    is_outside: bool
    kind: str
    name: str
    holder: str

    def is_current(self) -> bool:
        """Whether HDF5 would open it today, and it is as it was."""
        found = _first_that_is_there(self.kind, self.name, Path(self.holder))
        return found is not None and str(found.resolve()) == self.path and self.is_unchanged()

    def is_unchanged(self) -> bool:
        """Whether the file is as it was."""
        try:
            return version_of_file(Path(self.path).stat()) == self.version
        except OSError:
            return False


def check_unchanged(others: tuple[OtherFile, ...], where: str) -> None:
    """See that the other files of a file are what they were.

    Raises:
        SourceChangedError: At the first that is not.
    """
    for other in others:
        if not other.is_unchanged():
            raise SourceChangedError(
                f"{other.path}: replaced, written to or removed since {where}, which reads from it, was looked at. "
                "Open the dataset, or pack it, again when nothing writes to it."
            )


# What was found in the files that were looked at last: a file of a thousand episodes is opened once for each.
_known: OrderedDict[tuple[str, str, bool], tuple[OtherFile, ...]] = OrderedDict()


def other_files(file: h5py.File, path: Path | None, where: str, *, allow_outside: bool) -> tuple[OtherFile, ...]:
    """The other files that an open file reads from, once it is sure that it may, and that all of them are whole.

    Args:
        file: The file; nothing in it is followed before its other files are judged.
        path: Of it; None if it is remote, where no other file can be opened.
        where: What messages call it.
        allow_outside: Whether other files may be outside of its folder.

    Raises:
        LayoutError: If one is outside, or the file is remote; the message begins with the path inside the file.
        SourceError: If one is missing, no plain file, or has less than is taken from it.
    """
    if path is None:
        _refuse_any(file)
        return ()
    try:
        key = str(path.absolute()), version_of_file(path.stat()), allow_outside
    except OSError as error:
        raise SourceError(f"{where}: {error.strerror}, wanted an HDF5 file. Check the path.") from error
    known = _known.get(key)
    if known is None or not all(other.is_current() for other in known):
        known = _Search(path, where, allow_outside).all(file)
        _known[key] = known
        while len(_known) > _MAX_KNOWN:
            _known.popitem(last=False)
    return known


def _refuse_any(file: h5py.File) -> None:
    for mention in mentions(file):
        if mention.is_elsewhere:
            raise LayoutError(
                f"{mention.path}: {mention.kind} in another file, {mention.file!r}, which cannot be opened beside one "
                "at a URL; wanted everything in one file. Copy both files to a disk and give that path"
            )
        problem = _problem_of_target(file, mention)
        if problem:
            raise SourceError(f"{file.filename}: {_describe(mention)}: {problem}")


class _Search:
    """Finds the other files of one file, and theirs."""

    def __init__(self, path: Path, where: str, allow_outside: bool) -> None:
        self._path, self._where, self._allow_outside = path, where, allow_outside
        # A symbolic link to the file itself is what the user gave, and its sources may be at either end.
        self._roots = path.absolute().parent.resolve(), path.resolve().parent
        self._found: dict[str, OtherFile] = {}
        self._wanted: dict[Path, list[tuple[str, Mention]]] = defaultdict(list)

    def all(self, file: h5py.File) -> tuple[OtherFile, ...]:
        """Everything that `file` leads to. Objects are opened only when every file that is named was judged."""
        waiting = self._judge(file, self._path)
        seen = {str(self._path.resolve())}
        while waiting:
            path = waiting.pop()
            real = str(path.resolve())
            if real not in seen:
                seen.add(real)
                with h5py.File(path, "r") as other:
                    waiting += self._judge(other, path)
        for path, wanted in self._wanted.items():
            with h5py.File(path, "r") as holder:
                for said, mention in wanted:
                    problem = _problem_of_target(holder, mention)
                    if problem:
                        raise SourceError(f"{self._where}: {said}: {path}: {problem}")
        return tuple(self._found.values())

    def _judge(self, file: h5py.File, holder: Path) -> list[Path]:
        """Judge what one file names, and give those of them that may name others."""
        files = []
        try:
            named = mentions(file)
        except LayoutError as error:
            raise error if holder == self._path else LayoutError(f"{holder}: {error}") from error
        for mention in named:
            said = _describe(mention) + ("" if holder == self._path else f" in {holder}")
            for one in _blocks(mention, holder):
                if not one.is_elsewhere:
                    self._wanted[holder].append((said, one))
                    continue
                path = self._take(one, holder, said)
                if one.kind != "external storage":
                    files.append(path)
                    self._wanted[path].append((said, one))
        return files

    def _take(self, mention: Mention, holder: Path, said: str) -> Path:
        path = _first_that_is_there(mention.kind, mention.file, holder)
        if path is None:
            raise SourceError(f"{self._where}: {said}: {_missing(mention, holder)}")
        real = path.resolve()
        is_outside = not any(root in real.parents for root in self._roots)
        if is_outside and not self._allow_outside:
            raise LayoutError(
                f"{said}: that is {real}, outside of this file's folder, wanted what it reads from there or below. "
                f"If you trust the file, allow it with {_ALLOW}"
            )
        problem = not_a_plain_file(path)
        if problem:
            raise SourceError(f"{self._where}: {said}: {path}: {problem}, wanted a file. Put the recorded file there.")
        status = real.stat()
        if mention.kind == "external storage" and status.st_size < mention.reach[0]:
            raise SourceError(
                f"{self._where}: {said}: {path}: {status.st_size:,} bytes, wanted {mention.reach[0]:,}, and HDF5 would "
                "give zeros for the rest. Copy that file again."
            )
        other = OtherFile(str(real), version_of_file(status), is_outside, mention.kind, mention.file, str(holder))
        self._found.setdefault(str(real), other)
        return path


def _describe(mention: Mention) -> str:
    to = f", {mention.target}" if mention.target else ""
    name = "this file itself" if not mention.is_elsewhere else repr(mention.file)
    word = {"external link": "to", "virtual dataset": "of", "external storage": "in"}[mention.kind]
    return f"{mention.path}: {mention.kind} {word} {name}{to}"


def _missing(mention: Mention, holder: Path) -> str:
    places = list(_places(mention.kind, mention.file, holder))
    there = [path for path in places if not not_a_plain_file(path)]
    if there:  # and HDF5 went on to the next place
        return f"{there[0]}: cannot be read as HDF5, wanted an HDF5 file. Copy that file again."
    silently = ", and HDF5 would give the fill value for what was recorded" * (mention.kind == "virtual dataset")
    gone = f"no such file{silently}; wanted it"
    beside = holder.parent / mention.file
    if mention.kind == "external storage" and not Path(mention.file).is_absolute() and beside.exists():
        return f"{gone}. It is beside the file: start with HDF5_EXTFILE_PREFIX='${{ORIGIN}}' in the environment."
    if mention.kind == "external storage":
        return f"{gone}. Put it at {places[-1]}."
    name = Path(mention.file)
    return f"{gone}. Put it at {holder.parent / (name.name if name.is_absolute() else name)}."


def _first_that_is_there(kind: str, name: str, holder: Path) -> Path | None:
    """The file that HDF5 would open; of external storage, which is read as it is, also one that is no HDF5 file."""
    for path in _places(kind, name, holder):
        # What is no plain file is HDF5's choice too: it would wait for a FIFO.
        problem = not_a_plain_file(path)
        if problem is None:
            if kind == "external storage" or h5py.is_hdf5(path):
                return path
        elif os.path.lexists(path) and path.exists():
            return path
    return None


def _places(kind: str, name: str, holder: Path) -> Iterator[Path]:
    """Where HDF5 looks for a file, in its order.

    Source: the reference manual of HDF5 on H5Lcreate_external, H5Pset_virtual_prefix and H5Pset_efile_prefix.
    """
    folder = holder.absolute().parent
    prefixes = os.environ.get(_PREFIXES[kind], "")
    if kind == "external storage":
        prefix = prefixes.replace("${ORIGIN}", str(folder))
        if prefix and prefix != ".":
            yield Path(prefix) / name
        yield Path(name)
        return
    if Path(name).is_absolute():
        yield Path(name)
        name = Path(name).name
    for prefix in filter(None, prefixes.split(":")):
        yield Path(prefix) / name
        if "${ORIGIN}" in prefix:
            yield Path(prefix.replace("${ORIGIN}", str(folder))) / name
    yield folder / name
    yield Path(name)
    yield holder.resolve().parent / name


def _blocks(mention: Mention, holder: Path) -> list[Mention]:
    """What a mapping that stands for files or datasets 0, 1, 2, ... names, as far as they go; else the mention itself.

    Raises:
        LayoutError: If one is missing before others that are there: HDF5 would end the dataset where the gap is.
    """
    if mention.kind != "virtual dataset":
        return [mention]
    if BLOCK not in mention.file:
        return [replace(mention, file=mention.file.replace("%%", "%"))]
    found = [_block(mention, 0)]
    while _first_that_is_there(mention.kind, (one := _block(mention, len(found))).file, holder) is not None:
        found.append(one)
    place = next((path for path in _places(mention.kind, found[0].file, holder) if path.exists()), None)
    if place is not None:
        last = max(_numbers(Path(mention.file).name, (path.name for path in place.parent.iterdir())), default=0)
        if last >= len(found):
            raise LayoutError(
                f"{_describe(mention)}: {_block(mention, len(found)).file!r} is not there and "
                f"{_block(mention, last).file!r} is, and HDF5 would end the dataset at the gap; wanted all up to the "
                "last. Put the missing file back"
            )
    return found


def _numbers(pattern: str, names: Iterable[str]) -> set[int]:
    """The blocks among some names."""
    head, _, tail = (re.escape(part.replace("%%", "%")) for part in pattern.partition(BLOCK))
    return {int(match[1]) for name in names if (match := re.fullmatch(f"{head}(\\d+){tail}", name))}


def _block(mention: Mention, number: int) -> Mention:
    file, target = (text.replace(BLOCK, str(number)).replace("%%", "%") for text in (mention.file, mention.target))
    return replace(mention, file=file, target=target)


def _problem_of_target(file: h5py.File, mention: Mention) -> str | None:
    """Why an object that a link or a virtual dataset names is not what it takes it for, or None."""
    target = mention.target
    try:
        if mention.kind == "virtual dataset" and BLOCK in target:
            folder, _, pattern = target.rpartition("/")
            numbers = _numbers(pattern, file[folder or "/"])
            gap = next(number for number in range(len(numbers) + 1) if number not in numbers)
            if gap < len(numbers):
                return f"has no {_block(mention, gap).target}, and later ones, wanted all. Copy that file again."
            target = _block(mention, 0).target
        found = file[target]
    except (KeyError, OSError, RuntimeError, ValueError):
        return f"has no {target}, wanted it there. Put the file there that this one was made with."
    if mention.kind == "external link":
        return None
    shape = getattr(found, "shape", None)
    if shape is None or (mention.reach and len(shape) != len(mention.reach)):
        return f"{target} is {'a group' if shape is None else f'of shape {shape}'}, wanted the dataset that is taken."
    is_short = any(have < want for have, want in zip(shape, mention.reach, strict=False))
    if is_short or (mention.points >= 0 and found.size != mention.points):
        wanted = f"{mention.reach} and more" if mention.reach else f"{mention.points:,} elements"
        return f"{target} is of shape {shape}, wanted {wanted}. Copy that file again: it was not whole."
    return None
