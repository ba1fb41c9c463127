"""The tables of a manifest, each compared with what it should be when somebody asks for it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.format.episode_meta import parse_json
from epistream.sharding.format.tables import Names
from epistream.sharding.format.texts import Texts
from epistream.sharding.manifest.manifest_columns import (
    MORE_OF_EPISODES,
    MORE_OF_SHARDS,
    OF_EPISODES,
    OF_SHARDS,
    ManifestColumns,
)

REMEDY = "Re-create the manifest with 'epistream index URL --overwrite', or pack again."
_DTYPES = {"shard_checksums": np.uint8, "index_checksums": np.uint8, "shard_split": np.uint8}
_DTYPES |= {"episode_split": np.uint8, "episode_edits": np.uint8}


class ManifestArrays:
    """The tables of a manifest by name, each compared with what it should be when it is asked for."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], where: str) -> None:
        self._arrays, self.where = arrays, where

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def get(self, name: str, dtype: type[np.generic] = np.int64) -> NDArray[Any]:
        """The table `name`.

        Raises:
            FormatError: If it is not there, or of another dtype or number of axes.
        """
        array = self._arrays.get(name)
        num_axes = 2 if name in ("shard_checksums", "index_checksums", "ranges") else 1
        if array is None or array.dtype != dtype or array.ndim != num_axes:
            found = "missing" if array is None else f"{array.dtype} with {array.ndim} axes"
            raise FormatError(
                f"{self.where}: table {name!r} is {found}, wanted {np.dtype(dtype)} with {num_axes}. {REMEDY}"
            )
        return array

    def json_texts(self, name: str) -> Texts:
        """The table `name` that holds a JSON list of texts."""
        value = parse_json(self.get(name, np.uint8).tobytes(), self.where)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise FormatError(f"{self.where}: {name} that are no JSON list of texts. {REMEDY}")
        return Texts.of(value, self.where)


def columns_of(arrays: ManifestArrays, num_shards: int, num_episodes: int, *, is_view: bool) -> ManifestColumns:
    """The columns of so many shards and episodes; not compared with each other yet.

    Args:
        arrays: The tables.
        num_shards: As ``dataset.json`` says.
        num_episodes: As ``dataset.json`` says.
        is_view: Whether they may hold on to the file that they came from.

    Raises:
        FormatError: If one is missing, or of another dtype or length.
    """
    more = [name for name in (*MORE_OF_SHARDS, *MORE_OF_EPISODES) if name in arrays]
    values = {name: arrays.get(name, _DTYPES.get(name, np.int64)) for name in (*OF_SHARDS, *OF_EPISODES, *more)}
    if len(values["shard_bytes"]) != num_shards or len(values["episode_length"]) != num_episodes:
        raise FormatError(
            f"{arrays.where}: {len(values['shard_bytes'])} shards and {len(values['episode_length'])} episodes, "
            f"dataset.json says {num_shards} and {num_episodes}. {REMEDY}"
        )
    if "ranges" in arrays:
        values |= {"range_offsets": arrays.get("range_offsets"), "ranges": arrays.get("ranges")}
    if "task_ids" in arrays:
        values |= {"task_offsets": arrays.get("task_offsets"), "task_ids": arrays.get("task_ids")}
    else:
        values |= {"task_offsets": np.zeros(num_episodes + 1, np.int64), "task_ids": np.zeros(0, np.int64)}
    if not is_view:  # two thirds of the file may be sources, which views would keep in memory
        values = {name: array.copy() for name, array in values.items()}
    return ManifestColumns(names=Names(arrays.get("names", np.uint8), num_shards, arrays.where)[:], **values)
