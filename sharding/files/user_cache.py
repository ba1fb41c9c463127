"""What is kept for a user between runs: made once for each version of its source, by whoever comes first."""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from epistream.errors import CacheError, DeadlineError, SourceChangedError
from epistream.sharding.files.locks import locked
from epistream.sharding.files.pruning import prune_daily
from epistream.sharding.files.storage import write_local

T = TypeVar("T")

# How long to wait for another process that indexes the same file: terabytes of HDF5 take their time.
DEADLINE_S = 1800.0


def default_folder() -> Path:
    """Where indexes of this user are kept."""
    # The one place where users say that their home has no room; what is kept here changes no result.
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "epistream" / "indexes"


def make_once(
    lock: Path,
    read: Callable[[], T | None],
    make: Callable[[], Iterable[tuple[str, bytes]]],
    source: str,
    *,
    is_unchanged: Callable[[], bool] = lambda: True,
    deadline_s: float = DEADLINE_S,
    otherwise: str = ".",
) -> T:
    """What is kept; made now if nothing whole is there, and if no other process does so meanwhile.

    Whoever makes something also prunes the folder, once a day.

    Args:
        lock: The lock's file, in the folder where things are kept, while something is made.
        read: Gives what is kept, once it is marked as used (see `pruning`), or None if it is missing, torn, or of
            another version.
        make: Gives names and contents of the files to keep, the one that `read` looks for first last.
        source: What it is made from, for messages.
        is_unchanged: Whether `source` still is the version that was asked for, once it is made.
        deadline_s: How long to wait for another process.
        otherwise: Ends messages: what to do instead of keeping anything.

    Raises:
        SourceChangedError: If `source` changed meanwhile; nothing is kept then.
        CacheError: If the folder cannot be written.
        DeadlineError: If another process makes it for too long.
    """
    kept = read()
    if kept is not None:
        return kept
    with contextlib.ExitStack() as held:
        with _errors_in_words(lock, source, deadline_s, otherwise):
            lock.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            held.enter_context(locked(lock, deadline_s))
        # While it is held: who waits for it notices, and makes another.
        held.callback(lock.unlink, missing_ok=True)
        kept = read()  # somebody else may have made it meanwhile
        if kept is not None:
            return kept
        files = make()
        if not is_unchanged():
            raise SourceChangedError(f"{source}: changed while it was indexed. Try again when it is complete.")
        with _errors_in_words(lock, source, deadline_s, otherwise):
            for name, data in files:
                # Without fsync, which takes 5 ms a file and more: what a crash leaves torn, its checksum finds out.
                write_local(lock.with_name(name), data, sync=False)
        kept = read()
    prune_daily(lock.parent)
    if kept is None:
        raise CacheError(f"{lock.parent}: what was kept there cannot be read back, of {source}. Check the disk.")
    return kept


@contextlib.contextmanager
def _errors_in_words(lock: Path, source: str, deadline_s: float, otherwise: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise DeadlineError(
            f"{lock}: held by another process for {deadline_s:g} s, wanted it to index {source}. End that process or "
            f"set XDG_CACHE_HOME to another folder{otherwise}"
        ) from error
    except OSError as error:
        raise CacheError(
            f"{lock.parent}: {error}, wanted to keep an index there. Set XDG_CACHE_HOME to a folder that can be "
            f"written{otherwise}"
        ) from error
