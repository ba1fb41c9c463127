"""What goes wrong in a Parquet file told as an error of ours, and the numbers in Arrow arrays."""

import contextlib
import importlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import EpistreamError, FormatError
from epistream.sharding.files.arrow import arrow_module

__all__ = ["NOT_WHOLE", "arrow_errors", "arrow_module", "numbers_of"]

NOT_WHOLE = (
    "A recording that was not finalised has no footer, and neither has half a download: finalize() it with LeRobot, or "
    "download it again."
)


class Imports:
    """What rows and videos are read with, imported while others wait for a network: 0.15 s, which forks then have.

    What cannot be imported is told by whoever needs it.
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None

    def begin(self) -> None:
        """Begin to import, once it is known that something must be read."""
        self._thread = threading.Thread(target=self._load, name="epistream-imports", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Wait until all is there, if it was begun: a fork before would leave modules half imported for ever."""
        if self._thread is not None:
            self._thread.join()

    def _load(self) -> None:
        for name in ("pyarrow.parquet", "pyarrow.compute", "av"):
            with contextlib.suppress(Exception):
                importlib.import_module(name)


@contextlib.contextmanager
def arrow_errors(where: str) -> Iterator[None]:
    """What pyarrow raises, as a FormatError that names the file."""
    arrow = arrow_module("pyarrow")
    try:
        yield
    except EpistreamError:
        raise
    except (arrow.ArrowException, OSError, ValueError, KeyError, TypeError, OverflowError, MemoryError) as error:
        said = str(error).strip().splitlines()
        reason = said[0].rstrip(".")[:200] if said else type(error).__name__
        raise FormatError(f"{where}: {reason}; wanted a whole Parquet file. {NOT_WHOLE}") from error


def numbers_of(array: Any) -> NDArray[Any] | None:
    """(N,) the numbers of a `pyarrow.Array`, read-only; None if they are none, or some are missing.

    Not by its `to_numpy`, which imports pandas (0.2 s), and not by DLPack, of which versions warn of each other.
    """
    types = arrow_module("pyarrow.types")
    if array.null_count or not (types.is_integer(array.type) or types.is_floating(array.type)):
        return None
    dtype = np.dtype(array.type.to_pandas_dtype())
    data = array.buffers()[1]
    if data is None or not len(array):
        return np.zeros(0, dtype)
    return np.frombuffer(data, dtype, len(array), array.offset * dtype.itemsize)
