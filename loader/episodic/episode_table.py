"""Episodes by number and by path, as code that thinks in files asks for them."""

import bisect
import os
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from epistream.errors import OptionError
from epistream.file_systems import local_path
from epistream.sharding.files.hdf5_sources import find_sources
from epistream.sharding.files.names import LEROBOT_INFO
from epistream.sharding.manifest.manifest_file import FILE_NAME
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.working_folder import absolute

AnyPath = str | os.PathLike[str]


def find_paths(given: AnyPath | Sequence[AnyPath]) -> list[str]:
    """HDF5 files and folders of data sets behind a list of paths; any other folder is walked for HDF5 files.

    Raises:
        OptionError: no path at all.
        SourceError: a folder that holds neither.
    """
    paths = [given] if isinstance(given, str | os.PathLike) else list(given)
    if not paths:
        raise OptionError(
            "dataset_path_list: empty, wanted HDF5 files, folders of them, or folders of shards or LeRobot data sets."
        )
    found: list[str] = []
    for path in [os.fspath(one) for one in paths]:
        local = local_path(path)
        is_walked = (
            local is not None
            and local.is_dir()
            and not (local / FILE_NAME).exists()
            and not (local / LEROBOT_INFO).exists()
        )
        found += map(str, find_sources(path)) if is_walked else [path]
    return found


def _spellings(name: str) -> Iterator[str]:
    yield name
    path = local_path(name)
    if path is not None:
        yield str(absolute(path))


class EpisodeTable:
    """The episodes of a dataset, E of them.

    The path of an episode is that of its file, followed by ``#n`` where the file holds several: n counts them in
    the order of the dataset, from 0.

    Attributes:
        paths: (E,) as above.
        length: (E,) steps.
        cumulative: (E,) steps up to the end of each episode.
    """

    def __init__(self, dataset: Dataset) -> None:
        files = [dataset.shard_url[shard] for shard in dataset.episode_shard.tolist()]
        episodes_in, seen = Counter(files), Counter[str]()
        self.paths: list[str] = []
        for file in files:
            self.paths.append(file if episodes_in[file] == 1 else f"{file}#{seen[file]}")
            seen[file] += 1
        self.length: NDArray[np.int64] = np.asarray(dataset.episode_length, np.int64)
        self.cumulative = np.cumsum(self.length)
        self._ends: list[int] = self.cumulative.tolist()
        self._number = {path: number for number, path in enumerate(self.paths)}
        self._episodes_in = episodes_in

    def locate(self, index: int) -> tuple[int, int]:
        """Episode and step of the window that has number `index`, counted over all episodes; negative from the end.

        Raises:
            IndexError: there is no such window, which ends a ``for`` loop over a map-style dataset.
        """
        total = self._ends[-1]
        if not -total <= index < total:
            raise IndexError(f"index {index} of {total} windows")
        index += total if index < 0 else 0
        episode = bisect.bisect_right(self._ends, index)
        return episode, index - (self._ends[episode - 1] if episode else 0)

    def number(self, path: AnyPath) -> int:
        """The episode that a path means.

        Raises:
            OptionError: no episode, or several.
        """
        name = os.fspath(path)
        for candidate in _spellings(name):
            if candidate in self._number:
                return self._number[candidate]
            if self._episodes_in.get(candidate, 0) > 1:
                raise OptionError(
                    f"{name}: holds {self._episodes_in[candidate]} episodes, wanted one of them. Append its number, "
                    f"for example {name}#0."
                )
        raise OptionError(f"{name}: no episode of this dataset. Its episodes are called like {self.paths[0]}.")
