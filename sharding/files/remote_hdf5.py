"""HDF5 files that lie behind URLs, for a packing job: found, and copied here one at a time."""

import os
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from epistream.access import Access, placed_link, split_secrets
from epistream.errors import SourceChangedError, SourceError
from epistream.file_systems import ask, is_same_version, local_path, open_file_system
from epistream.sharding.files.hdf5_sources import which_is
from epistream.sharding.files.names import HDF5_SUFFIXES
from epistream.sharding.files.sources import Hdf5Files, resolve_access
from epistream.sharding.files.storage import Options, errors_of, fetch_into
from epistream.sharding.files.versioned_files import version_and_bytes
from epistream.working_folder import absolute


def find_remote(url: str, access: Access) -> tuple[list[str], Access]:
    """The HDF5 files that a URL, a pattern of URLs or a folder names, in natural order, and what opens them.

    Raises:
        SourceError: If there is none, or the server lists no files.
    """
    plain = split_secrets(url)[0]
    if not any(sign in plain for sign in "*["):
        parts, opens = resolve_access(url, access)
        named = [file for part in parts if isinstance(part, Hdf5Files) for file in part.files]
        if named:
            return named, opens
        plain, access = parts[0].url, opens
    found = _listed(plain, access)
    if not found:
        raise SourceError(
            f"{url}: no HDF5 file there{which_is(plain)}, wanted at least one ({', '.join(HDF5_SUFFIXES)}). Check "
            "the URL; files of a web server are given one by one, or by a pattern in braces."
        )
    return found, access


def _listed(pattern: str, access: Access) -> list[str]:
    from natsort import natsorted, ns

    with errors_of(pattern, "wanted to list HDF5 files.", access):
        file_system, target = open_file_system(pattern, access)
        question = "glob" if any(sign in pattern for sign in "*[") else "find"
        try:
            names = [str(name) for name in ask(file_system, question, target)]
        except FileNotFoundError:
            names = []
    # What file systems call files has no protocol, and may lack the host.
    before = pattern.removesuffix(target)
    if before == pattern:
        before = f"{pattern.partition('://')[0]}://"
    urls = [f"{before}{name}" for name in names if name.lower().endswith(HDF5_SUFFIXES)]
    return list(natsorted(urls, alg=ns.PATH))


def names_of_urls(urls: Sequence[str]) -> list[str]:
    """What the dataset calls files of which some are remote: their paths below the folder that holds all of them."""
    places = [str(absolute(path)) if (path := local_path(url)) else f"/{placed_link(url)[1]}" for url in urls]
    places = [os.path.normpath(place.replace("://", "/")) for place in places]
    root = os.path.commonpath([os.path.dirname(place) for place in places])  # noqa: PTH120, no paths of this machine
    return [os.path.relpath(place, root) for place in places]


class RemoteCopy:
    """A remote file, copied to a file without a name, of which nothing is left however the process ends.

    Args:
        url: The file.
        version: As it was looked into.
        num_bytes: Its size then.
        access: What opens it.

    Attributes:
        path: Of the copy, for whoever opens it in this process.

    Raises:
        SourceError: If it cannot be brought.
        SourceChangedError: If it is another one now.
    """

    def __init__(self, url: str, version: str, num_bytes: int, access: Options) -> None:
        with tempfile.TemporaryFile(prefix="epistream-pack-") as file:
            fd = os.dup(file.fileno())
        self._close = weakref.finalize(self, os.close, fd)
        self.path = Path(f"/proc/self/fd/{fd}")  # HDF5 itself cannot open it, Python can
        try:
            _refuse_other(url, version, access)
            fetch_into(url, self.path, access)
            _refuse_other(url, version, access)
            size = self.path.stat().st_size
            if size != num_bytes:
                raise SourceChangedError(
                    f"{url}: {size:,} bytes came, wanted {num_bytes:,} as the job saw it. Pack again when nothing "
                    "writes to it."
                )
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give its room back."""
        self._close()


def _refuse_other(url: str, version: str, access: Options) -> None:
    if not is_same_version(version_and_bytes(url, access)[0], version):
        raise SourceChangedError(
            f"{url}: changed since the job looked at it, wanted it as it was. Pack again when nothing writes to it."
        )
