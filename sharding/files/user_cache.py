"""What is kept for a user between runs: made once for each version of its source, by whoever comes first."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from epistream.errors import CacheError, DeadlineError, EpistreamError, SourceChangedError
from epistream.sharding.files.locks import locked
from epistream.sharding.files.pruning import prune_daily
from epistream.sharding.files.spare_folder import is_first_to_say, spare_folders
from epistream.sharding.files.storage import Content, write_local

T = TypeVar("T")

_log = logging.getLogger(__name__)

# How long to wait for another process that indexes the same file: terabytes of HDF5 take their time.
DEADLINE_S = 1800.0


def default_folder() -> Path:
    """Where indexes of this user are kept; no absolute path if he has no home, or named a relative one."""
    # The one place where users say that their home has no room; what is kept here changes no result.
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.path.expanduser(base)) / "epistream" / "indexes"  # noqa: PTH111, no home is no error


@dataclass(frozen=True)
class Claim:
    """The right to make what a lock guards, had before it is made; `make_once` is given it in place of the lock's file.

    Attributes:
        path: The lock's file.
        held: Gives it up when it is closed, which `make_once` does.
    """

    path: Path
    held: contextlib.ExitStack


def claim(lock: Path) -> Claim | None:
    """The right to make something, if nobody else has it just now, and it can be had at all. Never waits.

    Who has claims makes what they are for before he waits for anybody: others with claims may wait for him.
    """
    with contextlib.suppress(OSError), contextlib.ExitStack() as held:
        if lock.parent.is_absolute():
            lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _hold(lock, 0.0, held)
            return Claim(lock, held.pop_all())
    return None


def _hold(lock: Path, deadline_s: float, held: contextlib.ExitStack) -> None:
    """Hold a lock until a stack is closed, which removes its file first: who waits for it notices and makes another."""
    held.enter_context(locked(lock, deadline_s))
    held.callback(_remove, lock)


def make_once(
    lock: Path | Claim,
    read: Callable[[Path], T | None],
    make: Callable[[], Sequence[tuple[str, Content]]],
    source: str,
    *,
    is_unchanged: Callable[[], bool] = lambda: True,
    deadline_s: float = DEADLINE_S,
    otherwise: str = ".",
    as_of_ns: Callable[[], int] | None = None,
) -> T:
    """What is kept; made now if nothing whole is there, and if no other process does so meanwhile.

    Whoever makes something also prunes the folder, once a day. Where the folder cannot be used, which is warned of
    once, things are kept in another one until this process and those around it end.

    Args:
        lock: The lock's file, in the folder where things are kept, while something is made; or the claim to it.
        read: Gives what is kept in a folder, once it is marked as used (see `pruning`), or None if it is missing, torn,
            or of another version.
        make: Gives names and contents of the files to keep, the one that `read` looks for first last. What writes a
            file bit by bit sees to it that `source` has not changed.
        source: What it is made from, for messages.
        is_unchanged: Whether `source` still is the version that was asked for, once it is made.
        deadline_s: How long to wait for another process.
        otherwise: Ends messages: what to do instead of keeping anything.
        as_of_ns: Gives the time of writing of the files, once they are made; that is now unless given.

    Raises:
        SourceChangedError: If `source` changed meanwhile; nothing is kept then.
        CacheError: If no folder can be written, be it the user's or one for temporary files.
        DeadlineError: If another process makes it for too long.
    """
    claimed = lock if isinstance(lock, Claim) else None
    path = lock.path if isinstance(lock, Claim) else lock
    making = _Making(path.name, claimed, read, make, source, is_unchanged, deadline_s, otherwise, as_of_ns)
    folder = path.parent
    refusals: list[str] = []
    try:
        return making.in_folder(folder)
    except _UnusableError as error:
        refusals.append(f"{folder}: {error}")
    cure = f"Set XDG_CACHE_HOME to a folder that can be written{otherwise}"
    for spare in spare_folders(refusals):
        try:
            kept = making.in_folder(spare)
        except _UnusableError as error:
            refusals.append(f"{spare}: {error}")
            continue
        if is_first_to_say(spare, str(folder)):
            found = "; ".join(refusals)
            _log.warning("%s, wanted to keep indexes there: they are in %s until this job ends. %s", found, spare, cure)
        return kept
    raise CacheError(f"{'; '.join(refusals)}, wanted to keep an index of {source} in one of these. {cure}")


class _UnusableError(CacheError):
    """Why a folder cannot keep anything."""


@dataclass
class _Making(Generic[T]):
    """What is made once and maybe put into several folders until one takes it; as `make_once`."""

    lock_name: str
    claimed: Claim | None
    read: Callable[[Path], T | None]
    make: Callable[[], Sequence[tuple[str, Content]]]
    source: str
    is_unchanged: Callable[[], bool]
    deadline_s: float
    otherwise: str
    as_of_ns: Callable[[], int] | None
    _files: Sequence[tuple[str, Content]] = field(init=False, default=())
    _time_ns: int | None = field(init=False, default=None)

    def in_folder(self, folder: Path) -> T:
        """What is kept in `folder`, made if it must be.

        Raises:
            _UnusableError: If it cannot be kept there.
            SourceChangedError, DeadlineError: As `make_once`.
        """
        if not folder.is_absolute():  # elsewhere in a worker, and after a change of the working directory
            is_home = folder.parts[0].startswith("~")
            raise _UnusableError(f"user {os.geteuid()} has no home" if is_home else "a relative path")
        kept = self.read(folder)
        if kept is not None:
            return kept
        lock = folder / self.lock_name
        with contextlib.ExitStack() as held:
            if self.claimed is not None and self.claimed.path == lock:
                held.enter_context(self.claimed.held)
            else:
                with self._errors_in_words(lock):
                    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                    _hold(lock, self.deadline_s, held)
            kept = self.read(folder)  # somebody else may have made it meanwhile
            if kept is not None:
                return kept
            self._files = self._files or self._make()
            with self._errors_in_words(lock), _removed_on_error([folder / name for name, _ in self._files]):
                for name, data in self._files:
                    # Without fsync, which takes 5 ms a file and more: what a crash leaves torn, its checksum finds out.
                    write_local(folder / name, data, sync=False, time_ns=self._time_ns)
            kept = self.read(folder)
        prune_daily(folder)
        if kept is None:
            raise _UnusableError("what is written there cannot be read back")
        return kept

    def _make(self) -> Sequence[tuple[str, Content]]:
        files = self.make()
        if not self.is_unchanged():
            raise SourceChangedError(f"{self.source}: changed while it was indexed. Try again when it is complete.")
        self._time_ns = None if self.as_of_ns is None else self.as_of_ns()
        return files

    @contextlib.contextmanager
    def _errors_in_words(self, lock: Path) -> Iterator[None]:
        try:
            yield
        except EpistreamError:  # of what a file is made from
            raise
        except OSError as error:
            if not isinstance(error, TimeoutError) or error.errno is not None:  # else it is the file system's
                raise _UnusableError(str(error)) from error
            raise DeadlineError(
                f"{lock}: held by another process for {self.deadline_s:g} s, wanted it to index {self.source}. End "
                f"that process or set XDG_CACHE_HOME to another folder{self.otherwise}"
            ) from error


@contextlib.contextmanager
def _removed_on_error(paths: Sequence[Path]) -> Iterator[None]:
    """Give room back where not all of some files found any."""
    try:
        yield
    except OSError:
        for path in paths:
            _remove(path)
        raise


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
