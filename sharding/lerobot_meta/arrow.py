"""pyarrow, imported by whom needs it, and what goes wrong in a Parquet file told as an error of ours."""

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import EpistreamError, FormatError, OptionError

NOT_WHOLE = (
    "A recording that was not finalised has no footer, and neither has half a download: finalize() it with LeRobot, or "
    "download it again."
)


def arrow_module(name: str) -> Any:
    """``pyarrow`` or one of its modules.

    Raises:
        OptionError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise OptionError(
            f"LeRobot data sets: {error}, wanted pyarrow, which reads their tables. Run: pip install "
            "'epistream[lerobot]'."
        ) from error


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
