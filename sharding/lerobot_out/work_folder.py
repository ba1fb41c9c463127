"""The folder that an export writes to: alone there, going on where it was, and never looking whole before it is.

All that is not complete lies in its sub-folder ``.export``: which job it is, what became of each of its tasks, and
files being written. A file of the data set takes its place when it is whole; ``meta/info.json``, without which no
reader takes the folder for a data set, is the last one.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import xxhash

from epistream.errors import DatasetExistsError, PackError
from epistream.sharding.files.locks import locked
from epistream.sharding.files.names import temporary_name
from epistream.sharding.files.storage import write_local
from epistream.sharding.lerobot_out.parquet import writing
from epistream.sharding.lerobot_out.settling import Settling, settle
from epistream.working_folder import absolute

INFO = "meta/info.json"
_WORK = ".export"
_JOB = "job.json"
_LOCK, _NEW = "lock", "new"
# What an export puts beside its sub-folder.
_OURS = frozenset({_WORK, "data", "meta", "videos"})


@dataclass
class WorkFolder:
    """Where an export writes. A context manager; leaving it ends the lock.

    Args:
        path: The folder of the data set.
    """

    path: Path
    _held: contextlib.ExitStack = field(init=False, default_factory=contextlib.ExitStack)
    _folders: set[str] = field(init=False, default_factory=set)  # that are there

    @property
    def work(self) -> Path:
        """Where everything lies that is not complete."""
        return self.path / _WORK

    def __enter__(self) -> "WorkFolder":
        self.path = absolute(self.path)
        with contextlib.ExitStack() as held:
            self._refuse_what_is_there()
            with writing(self.path):
                self.work.mkdir(parents=True, exist_ok=True)
            try:
                held.enter_context(locked(self.work / _LOCK, 0.0))
            except TimeoutError as error:
                raise PackError(
                    f"{self.path}: another export writes there, wanted it alone. Wait for it to end."
                ) from error
            except OSError as error:
                raise PackError(
                    f"{self.work}: cannot be written ({error.strerror}), wanted to. Check room and permissions."
                ) from error
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def _refuse_what_is_there(self) -> None:
        """What is in the folder already must be of an export that was interrupted."""
        try:
            names = {entry.name for entry in self.path.iterdir()}
        except FileNotFoundError:
            return
        except OSError as error:
            raise PackError(f"{self.path}: {error.strerror}, wanted a folder. Choose another.") from error
        if (self.path / INFO).exists() and not (self.work / _JOB).exists():
            with contextlib.suppress(OSError):  # an export that was killed when all but this was done left it empty
                self.work.rmdir()
            raise DatasetExistsError(
                f"{self.path}: holds a LeRobot data set already, wanted an empty folder. Choose another."
            )
        other = sorted(names - (_OURS if (self.work / _JOB).exists() else {_WORK}))
        if other:
            raise DatasetExistsError(
                f"{self.path}: holds {other[0]!r}, wanted an empty folder or an export that was interrupted. "
                "Choose another."
            )

    def begin(self, identity: Mapping[str, Any]) -> bool:
        """Take up the job that was interrupted here, or begin; True if its data set is complete already.

        Args:
            identity: What decides the bytes of the result, by what messages call it.

        Raises:
            DatasetExistsError: If the job that was interrupted was another.
        """
        wanted = json.loads(json.dumps(identity))
        try:
            found = json.loads((self.work / _JOB).read_bytes())
        except (OSError, ValueError):
            with writing(self.work):
                write_local(self.work / _JOB, json.dumps(wanted).encode(), sync=True)
            return False
        changed = [name for name in wanted if not isinstance(found, dict) or found.get(name) != wanted[name]]
        if changed:
            raise DatasetExistsError(
                f"{self.path}: holds an export that was interrupted, of other {' and '.join(changed)}, wanted the same "
                "to go on. Run it as before, or choose another folder."
            )
        return (self.path / INFO).exists()

    def conclude(self) -> None:
        """Once `INFO` is in place: remove what was needed to go on, the job's name last."""
        for entry in sorted(self.work.iterdir()):
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name not in (_JOB, _LOCK):
                entry.unlink(missing_ok=True)
        (self.work / _LOCK).unlink(missing_ok=True)
        (self.work / _JOB).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # whoever waits for the lock may have made it again
            self.work.rmdir()

    def files(self) -> dict[str, int]:
        """The files of rows and videos that are complete, and their bytes."""
        found = {}
        folders = [str(self.path / name) for name in ("data", "videos")]
        while folders:
            with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    if entry.is_dir():
                        folders.append(entry.path)
                    else:
                        found[os.path.relpath(entry.path, self.path)] = entry.stat().st_size
        return found

    @contextlib.contextmanager
    def new_file(self, name: str, settling: Settling | None = None) -> Iterator[Path]:
        """Where to write a file of the data set; it takes its place when all went well, by `settling` if that is given.

        Raises:
            PackError: If it cannot.
        """
        final = f"{self.path}/{name}"
        temporary = f"{self.work}/{_NEW}/{temporary_name(name.replace('/', '+'))}"
        for folder in (os.path.dirname(temporary), os.path.dirname(final)):  # noqa: PTH120, 100,000 of them
            if folder not in self._folders:
                with writing(folder):
                    Path(folder).mkdir(parents=True, exist_ok=True)
                self._folders.add(folder)
        yield Path(temporary)
        (settling.add if settling is not None else settle)(temporary, final)

    def write(self, name: str, data: bytes) -> None:
        """Put a small file of the data set in place."""
        with self.new_file(name) as path, writing(path):
            path.write_bytes(data)

    def staged(self, name: str) -> Path:
        """Where encoded pictures lie until a file takes them up."""
        path = self.work / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def keep(self, name: str, facts: Any) -> None:
        """Keep what became of a task: numbers, texts, bytes, arrays, lists and maps of them."""
        data = packed(facts)
        path = self._facts(name)
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_local(path, xxhash.xxh3_64_digest(data) + data, sync=False)

    def kept(self, name: str) -> Any:
        """What `keep` was given; None if nothing was, or it is torn."""
        try:
            data = self._facts(name).read_bytes()
        except OSError:
            return None
        if xxhash.xxh3_64_digest(data[8:]) != data[:8]:
            return None
        return unpacked(data[8:])

    def _facts(self, name: str) -> Path:
        return self.work / "facts" / name


_ARRAY = 1


def packed(value: Any) -> bytes:
    """Numbers, texts, bytes, arrays, lists and maps of them as bytes."""
    data: bytes = msgpack.packb(value, default=_plain)
    return data


def unpacked(data: bytes) -> Any:
    """The inverse of `packed`."""
    return msgpack.unpackb(data, ext_hook=_array, strict_map_key=False)


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        head = msgpack.packb([value.dtype.str, list(value.shape)])
        return msgpack.ExtType(_ARRAY, head + np.ascontiguousarray(value).tobytes())
    raise TypeError(f"{type(value).__name__}, wanted numbers, texts, bytes or arrays")


def _array(code: int, data: bytes) -> Any:
    unpacker = msgpack.Unpacker()
    unpacker.feed(data)
    dtype, shape = unpacker.unpack()
    return np.frombuffer(data[unpacker.tell() :], dtype).reshape(shape)
