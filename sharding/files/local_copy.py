"""A file of a dataset as a local path: itself when it is local, else a copy that lives as long as it is used."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from epistream.errors import OptionError, SourceError
from epistream.file_systems import local_path
from epistream.sharding.files.storage import Options, fetch, parent_and_name


@contextlib.contextmanager
def local_copy(url: str, options: Options = None) -> Iterator[Path]:
    """The path of `url`, or of a temporary copy with the same file name.

    Raises:
        SourceError: If there is no such file, or it cannot be fetched.
        OptionError: If the URL's scheme is unknown, or its package is not installed.
    """
    path = local_path(url)
    if path is not None:
        if not path.is_file():
            raise SourceError(f"{url}: no such file.")
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="epistream-") as folder:
        copy = Path(folder) / parent_and_name(url)[1]
        try:
            fetch(url, copy, options)
        except OptionError:
            raise
        except FileNotFoundError as error:
            raise SourceError(f"{url}: no such file.") from error
        except Exception as error:  # each file system of fsspec has errors of its own
            raise SourceError(f"{url}: {type(error).__name__}: {error}, wanted to fetch it.") from error
        yield copy
