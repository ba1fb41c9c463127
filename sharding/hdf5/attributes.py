"""What the episodes of an HDF5 file say of themselves beside what is streamed, as their layout reads it."""

from collections.abc import Mapping, Sequence
from typing import Any

import h5py

from epistream.sharding.files.storage import Options
from epistream.sharding.hdf5.file import read_hdf5
from epistream.sharding.layouts.mapping import MappingLayout
from epistream.sharding.layouts.registry import described, episodes_of


def hdf5_attributes(
    url: str,
    groups: Sequence[str],
    options: Options = None,
    layout: str | MappingLayout | None = None,
    *,
    allow_outside: bool = False,
) -> list[Mapping[str, Any]]:
    """The attributes of some episodes of a file.

    Args:
        url: The file.
        groups: Where the episodes are in it.
        options: For fsspec.
        layout: Insist on this layout instead of finding it.
        allow_outside: Whether the file may read from others outside of its folder.

    Raises:
        SourceError: If it cannot be read.
        LayoutError: If it is of no layout any more, or one of the episodes is gone.
    """

    def look(file: h5py.File, raw: Any) -> list[Mapping[str, Any]]:
        found, _ = episodes_of(file, layout)
        return [described(found, file, group).attributes for group in groups]

    return read_hdf5(url, options, look, allow_outside=allow_outside)
