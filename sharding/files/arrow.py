"""pyarrow, imported by whom needs it."""

import importlib
from typing import Any

from epistream.errors import OptionError


def arrow_module(name: str = "pyarrow") -> Any:
    """``pyarrow`` or one of its modules.

    Raises:
        OptionError: If it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise OptionError(
            f"LeRobot data sets: {error}, wanted pyarrow, which reads and writes their tables. Run: pip install "
            "'epistream[lerobot]'."
        ) from error
