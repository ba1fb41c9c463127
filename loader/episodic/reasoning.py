"""Texts and numbers that IL-Studio's files hold about the thinking behind each step, read with h5py on request.

| in the file                                     | at a step                                                        |
| ----------------------------------------------- | ---------------------------------------------------------------- |
| ``/substep_reasonings`` (T,) text               | the text                                                         |
| ``/reasoning`` (T,) text                        | the text                                                         |
| ``/reasoning/<key>``, each (T, ...)             | a dict: text, or an array; gripper_position is ``gripper_pos``,  |
|                                                 | target_position ``target pos``, as IL-Studio's sample calls them |
"""

from functools import partial
from pathlib import Path
from typing import Any

import h5py

from epistream.errors import LayoutError, OptionError
from epistream.lru import SharedLru
from epistream.sharding.files.names import is_episode_url, is_tar
from epistream.sharding.hdf5.file import open_hdf5
from epistream.sharding.manifest.opened_dataset import Dataset

_NAMES = {"gripper_position": "gripper_pos", "target_position": "target pos"}
# Some 100 kB each.
_MAX_EPISODES = 256

Columns = dict[str, Any] | list[Any]


class Reasoning:
    """What is written about the steps of episodes, one episode a file. Picklable; every process reads for itself.

    Args:
        dataset: the episodes.
    """

    def __init__(self, dataset: Dataset, *, allow_outside: bool = False) -> None:
        self._dataset, self._allow_outside = dataset, allow_outside
        self._read_lately: SharedLru[int, Columns] = SharedLru(_MAX_EPISODES)

    def at(self, episode: int, step: int) -> str | dict[str, Any]:
        """What is written about one step; an empty text where nothing is.

        Raises:
            OptionError: the episode is packed: shards hold no texts of steps.
            SourceError: its file cannot be read.
            LayoutError: what its file says is not of every step.
        """
        columns = self._columns(episode)
        if isinstance(columns, dict):
            return {key: values[step] for key, values in columns.items()} if columns else ""
        return str(columns[step])

    def subtask_before(self, episode: int, step: int) -> str:
        """The subtask of the step before, ``Init`` at the first; an empty text where none are written."""
        columns = self._columns(episode)
        if not isinstance(columns, dict) or "subtask" not in columns:
            return ""
        return str(columns["subtask"][step - 1]) if step else "Init"

    def _columns(self, episode: int) -> Columns:
        return self._read_lately.get(episode, lambda: self._read(episode))

    def _read(self, episode: int) -> Columns:
        shard = int(self._dataset.episode_shard[episode])
        url = self._dataset.shard_url[shard]
        is_set = is_episode_url(self._dataset.index_url[shard])
        if is_tar(url) or is_set:
            what = (
                "in a LeRobot data set, where none is looked for"
                if is_set
                else "a shard, which holds no texts of steps"
            )
            raise OptionError(
                f"data_args.use_reasoning: {Path(url).name} is {what}. Give the HDF5 files, or add them "
                "in load_onestep_from_episode of a subclass."
            )
        with open_hdf5(url, self._dataset.storage_options, allow_outside=self._allow_outside) as (file, _):
            return _read_columns(file, int(self._dataset.episode_length[episode]))

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(Reasoning, allow_outside=self._allow_outside), (self._dataset,)


def _read_columns(file: h5py.File, length: int) -> Columns:
    for name in ("substep_reasonings", "reasoning"):
        found = file.get(name)
        if isinstance(found, h5py.Dataset):
            return list(_values(found, length))
        if isinstance(found, h5py.Group):
            return {
                _NAMES.get(key, key): _values(rows, length)
                for key, rows in found.items()
                if isinstance(rows, h5py.Dataset)
            }
    return {}


def _values(rows: h5py.Dataset, length: int) -> Any:
    """Texts as text, numbers as they are; one for each step, and maybe more."""
    is_text = rows.dtype.kind in "SO"
    shape = tuple(rows.shape or ())  # None where a dataset is written without values
    wanted = (length,) if is_text else (length, *shape[1:])
    if len(shape) != len(wanted) or shape[0] < length:
        raise LayoutError(
            f"{rows.name}: shape {shape}, wanted {wanted}, one for each step. Correct the file, or leave "
            "data_args.use_reasoning out."
        )
    values = rows[()]
    if not is_text:
        return values
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values.tolist()]
