"""What a relative path means, settled while the process stands where it was given; also where that is gone."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from epistream.errors import OptionError


def absolute(path: Path) -> Path:
    """A path that stays the same wherever the process, or another one, goes; an absolute one as it is.

    Raises:
        OptionError: If it is relative, and the working directory is gone.
    """
    try:
        return path.absolute()
    except OSError as error:
        raise OptionError(
            f"{path}: a relative path, and the working directory is gone ({error.strerror}), wanted one to find it "
            "from. Give an absolute path, or change to a directory that is there first."
        ) from error


def is_gone() -> bool:
    """Whether the process stands in a directory that was removed, or that it may not look at."""
    try:
        os.getcwd()  # noqa: PTH109, nobody wants the path
    except OSError:
        return True
    return False


@contextlib.contextmanager
def standing_somewhere() -> Iterator[None]:
    """Stand in the root directory meanwhile if where the process stands is gone, and `multiprocessing` starts nothing.

    No thread misses it, since a relative path leads nowhere from a directory that was removed.
    """
    try:
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY) if is_gone() else -1
    except OSError:
        descriptor = -1
    if descriptor < 0:
        yield
        return
    try:
        os.chdir("/")
        yield
    finally:
        os.fchdir(descriptor)
        os.close(descriptor)
