"""Statistics of a LeRobot data set, as its own files have them: of all episodes or of some, read on the first look."""

import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import FormatError, SourceError
from epistream.file_systems import local_path
from epistream.lazy import lazy
from epistream.sharding.files.pruning import mark_used
from epistream.sharding.files.storage import Options
from epistream.sharding.files.user_cache import default_folder, make_once
from epistream.sharding.format.features import Feature
from epistream.sharding.format.statistics import QUANTILES, plain_numbers
from epistream.sharding.lerobot_meta.arrow import arrow_errors, numbers_of
from epistream.sharding.lerobot_meta.info import Column, LeRobotInfo
from epistream.sharding.lerobot_meta.meta_files import MetaFiles, at_once, look_at, version_now
from epistream.sharding.lerobot_meta.metadata import LeRobotMeta
from epistream.sharding.lerobot_meta.parquet import read_table
from epistream.sharding.manifest.dataset_statistics import statistics_problem

_log = logging.getLogger(__name__)

STATS, EPISODES_STATS = "meta/stats.json", "meta/episodes_stats.jsonl"
# Raised when the same files would give other statistics.
_RECIPE = 1
_MOMENTS = ("mean", "std", "min", "max")
_REQUIRED = (*_MOMENTS, "count")
_QUANTILES = ("q01", "q10", "q50", "q90", "q99")
Raw = dict[str, dict[str, Any]]
Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StatisticsSource:
    """Where the statistics of a data set are. Pickles; nothing is read before `read`.

    Args:
        root: Its folder, an absolute path or a URL.
        options: For fsspec.
        info: What ``info.json`` says.
        digest: Of its metadata.
        tables: Versions of the tables of episodes by relative path, of v3.
        chosen: (E,) the episodes that are meant; all if None.
        folder: Where what took long is kept; the user's cache unless given.
    """

    root: str
    options: Options
    info: LeRobotInfo
    digest: str
    tables: Mapping[str, str]
    chosen: NDArray[np.bool_] | None = None
    folder: Path | None = None

    def read(self) -> Raw:
        """By LeRobot's key, pictures too: ``min``, ``max``, ``mean``, ``std``, ``count`` and, from v3 on, quantiles.

        Lists in LeRobot's shapes: (3, 1, 1) for pictures, whose values are from 0 to 1. Those of all episodes are
        ``stats.json``'s; where it is missing, or only some episodes are meant, those of each episode together, as
        LeRobot puts them together: quantiles are the mean of the episodes' ones by their steps, an estimate. Of v2.0,
        which has none of each episode, those of all. Empty where there are none at all.

        Raises:
            SourceError: If a file cannot be read.
            FormatError: If one is torn, or says what cannot be.
        """
        if self.chosen is None or self.info.version == (2, 0):
            found = self._of_all()
            if found is not None:
                return found
        if self.info.version == (2, 0) or (self.chosen is not None and not self.chosen.any()):
            return {}
        return self._of_episodes()

    def _of_all(self) -> Raw | None:
        files = _any_file(self.root, self.options)
        data, where = files.read(STATS), files.url(STATS)
        if data is None:
            return None
        try:
            said = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise FormatError(
                f"{where}: no JSON ({str(error)[:120]}), wanted statistics. Download it again."
            ) from error
        if not isinstance(said, dict) or not all(isinstance(one, dict) for one in said.values()):
            raise FormatError(f"{where}: no map of maps, wanted statistics by feature. Download it again.")
        return {key: one for key, one in said.items() if key in self.info.columns}

    def _of_episodes(self) -> Raw:
        """Put together once, and kept: of 100,000 episodes that takes seconds."""
        chosen = np.ones(self.info.total_episodes, np.bool_) if self.chosen is None else self.chosen
        file = EPISODES_STATS if self.info.version == (2, 1) else ""
        version = version_now(_any_file(self.root, self.options).url(file), self.options)[0] if file else ""
        if version is None:
            return self._of_all() or {}
        said = f"lerobot statistics\0{_RECIPE}\0{self.digest}\0{version}\0{self.tables}\0".encode() + chosen.tobytes()
        name = f"{xxhash.xxh3_128_hexdigest(said)}.statistics-{_RECIPE}.json"
        folder = self.folder or default_folder()

        def make() -> list[tuple[str, bytes]]:
            columns = [one for one in self.info.columns.values() if one.dtype not in ("string", "language")]
            files = look_at(self.root, self.options)
            parts = of_lines(files, columns, chosen) if file else of_tables(files, list(self.tables), columns, chosen)
            return [(name, json.dumps({key: _together(one) for key, one in parts.items()}).encode())]

        return make_once((folder / name).with_suffix(".lock"), lambda place: _read(place / name), make, self.root)


def statistics_of(
    meta: LeRobotMeta,
    options: Options,
    features: Mapping[str, Feature],
    chosen: NDArray[np.bool_] | None = None,
    folder: Path | None = None,
) -> "LeRobotStatistics":
    """The statistics of a data set, as `Dataset.statistics` wants them; its `source` has those of pictures as well.

    Args:
        meta: Its metadata.
        options: For fsspec.
        features: Of the dataset.
        chosen: (E,) the episodes that are meant, those for training; all if None.
        folder: As `keep_metadata`.
    """
    tables = {name: version for name, version in meta.files.items() if name.startswith("meta/episodes/")}
    source = StatisticsSource(meta.root, options, meta.info, meta.digest, tables, chosen, folder)
    return LeRobotStatistics(source, features)


class LeRobotStatistics(Mapping[str, Mapping[str, Any]]):
    """Statistics by the name of an array feature, as `Dataset.statistics` has them; read on the first look.

    Args:
        source: Where they are.
        features: Of the dataset.
    """

    def __init__(self, source: StatisticsSource, features: Mapping[str, Feature]) -> None:
        self.source = source
        self._features = {name: feature for name, feature in features.items() if feature.kind == "array"}

    @lazy
    def _values(self) -> dict[str, dict[str, Any]]:
        raw, found = self.source.read(), {}
        for name, feature in self._features.items():
            said = raw.get(feature.source_path)
            if said is not None and set(_MOMENTS) <= set(said):
                # v2.0 says nothing of how many steps it is: all.
                found[name] = _plain({"count": self.source.info.total_frames, **said}, feature, self.source.root)
        problem = statistics_problem(found, self._features)
        if problem:
            raise FormatError(f"{self.source.root}: {problem}. Make meta/stats.json anew with LeRobot.")
        return found

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"LeRobotStatistics of {self.source.root}"

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source, "_features": self._features}  # read again where somebody asks


def _any_file(root: str, options: Options) -> MetaFiles:
    return MetaFiles(root, options, {}, {}, is_listed=False)


def _plain(said: Mapping[str, Any], feature: Feature, root: str) -> dict[str, Any]:
    """Of one feature, in its shape: LeRobot has that of a single number in a list of one."""
    found: dict[str, Any] = {}
    try:
        found["count"] = int(np.asarray(said["count"], np.int64).reshape(-1)[0])
        for key in (*_MOMENTS, *QUANTILES):
            if key in said:
                values = np.asarray(said[key], np.float64).reshape(feature.shape)
                found[key] = plain_numbers(values).tolist()
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise FormatError(
            f"{root}: statistics of {feature.source_path}: {str(error)[:120]}, wanted numbers of shape "
            f"{feature.shape}. Make meta/stats.json anew with LeRobot."
        ) from error
    return found


def _together(parts: Mapping[str, Array]) -> dict[str, Any]:
    """Statistics of N episodes as those of one, each (N, ...). The formulas are those of LeRobot's aggregation.

    Source: compute_stats.py of lerobot 0.4.4 and 0.3.3.
    """
    mean, std, count = parts["mean"], parts["std"], parts["count"].reshape(-1)
    total = count.sum()
    weight = (count / total).reshape(-1, *[1] * (mean.ndim - 1))
    whole = (mean * weight).sum(axis=0)
    variance = ((std**2 + (mean - whole) ** 2) * weight).sum(axis=0)
    found = {
        "min": parts["min"].min(axis=0),
        "max": parts["max"].max(axis=0),
        "mean": whole,
        "std": np.sqrt(variance),
        **{name: (parts[name] * weight).sum(axis=0) for name in _QUANTILES if name in parts},
    }
    return {**{name: plain_numbers(value).tolist() for name, value in found.items()}, "count": [int(total)]}


def _shape(column: Column, num_values: int) -> tuple[int, ...]:
    return (num_values, 1, 1) if column.is_picture else column.shape or (1,)


def of_lines(files: MetaFiles, columns: Sequence[Column], chosen: NDArray[np.bool_]) -> dict[str, dict[str, Array]]:
    """Those of v2.1, one line an episode; of features that every chosen episode has, in the order of episodes."""
    where = files.url(EPISODES_STATS)
    missing, numbers = chosen.copy(), []
    rows: dict[str, dict[str, list[Any]]] = {one.key: {name: [] for name in _REQUIRED} for one in columns}
    with _opened(files) as file:
        for number, line in enumerate(file):
            if not line.strip():
                continue
            try:
                said = json.loads(line)
                episode, found = said["episode_index"], said["stats"]
                if type(episode) is not int or not 0 <= episode < len(chosen) or not missing[episode]:
                    if type(episode) is int and 0 <= episode < len(chosen) and not chosen[episode]:
                        continue
                    raise ValueError(f"episode_index {episode!r:.40}, twice or out of range")
                missing[episode] = False
                numbers.append(episode)
                for key in [key for key in rows if key not in found]:
                    del rows[key]
                for key, lists in rows.items():
                    for name, values in lists.items():
                        values.append(np.asarray(found[key][name], np.float64).reshape(-1))
            except (KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
                raise FormatError(
                    f"{where}: line {number + 1}: {type(error).__name__}: {str(error)[:120]}; wanted the statistics of "
                    "an episode. Download it again."
                ) from error
    if missing.any():
        raise FormatError(f"{where}: nothing of episode {int(np.argmax(missing))}, wanted all. Download it again.")
    by_key = {one.key: one for one in columns}
    return {
        key: {name: _stacked(values, by_key[key], name, where)[np.argsort(numbers)] for name, values in lists.items()}
        for key, lists in rows.items()
    }


def _opened(files: MetaFiles) -> BinaryIO:
    path = local_path(files.url(EPISODES_STATS))
    if path is not None:
        return path.open("rb")  # of 100,000 episodes half a gigabyte, of which a line is looked at at a time
    return io.BytesIO(files.read(EPISODES_STATS) or b"")


def _stacked(values: list[Array], column: Column, name: str, where: str) -> Array:
    sizes = {len(one) for one in values}
    if len(sizes) != 1:
        raise FormatError(
            f"{where}: {name} of {column.key} of {sorted(sizes)[:3]} numbers, wanted as many of each episode. Download "
            "it again."
        )
    return _shaped(np.stack(values), column, name, where)


def _shaped(values: Array, column: Column, name: str, where: str) -> Array:
    """(N, ...) of (N, numbers), as LeRobot has them; counts are (N, 1)."""
    shape = (1,) if name == "count" else _shape(column, values.shape[1])
    if values.shape[1] != int(np.prod(shape)) or (name == "count" and not (values >= 1).all()):
        raise FormatError(
            f"{where}: {name} of {column.key}: {values.shape[1]} numbers, wanted shape {shape} and counts of at least "
            "1. Download it again."
        )
    return values.reshape(len(values), *shape)


def of_tables(
    files: MetaFiles, tables: Sequence[str], columns: Sequence[Column], chosen: NDArray[np.bool_]
) -> dict[str, dict[str, Array]]:
    """Those of v3, in columns of the tables of episodes; of features that every one has, in their order."""
    names = {f"stats/{one.key}/{name}": (one, name) for one in columns for name in (*_REQUIRED, *_QUANTILES)}

    def read(file: str) -> dict[str, Array]:
        table, where = read_table(files, file, ["episode_index", *names]), files.url(file)
        if table is None:
            raise SourceError(f"{where}: no such file, wanted the statistics of episodes. Open the data set again.")
        with arrow_errors(where):
            found = {name: _flat(table.column(name)) for name in table.column_names}
        numbers = found.pop("episode_index", None)
        if numbers is None or not ((numbers >= 0) & (numbers < len(chosen))).all():
            raise FormatError(f"{where}: episode_index out of range, wanted the set as it was opened. Open it again.")
        kept = chosen[numbers.reshape(-1).astype(np.int64)]
        shaped = {
            name: _shaped(values[kept], *names[name], where) for name, values in found.items() if values is not None
        }
        return {**shaped, "episode_index": numbers.reshape(-1)[kept]}

    parts = at_once(read, tables, is_local=local_path(files.root) is not None)
    if not parts:
        return {}
    order = np.argsort(np.concatenate([part["episode_index"] for part in parts]), kind="stable")
    found: dict[str, dict[str, Array]] = {}
    for name, (column, statistic) in names.items():
        if all(name in part for part in parts):
            found.setdefault(column.key, {})[statistic] = np.concatenate([part[name] for part in parts])[order]
    return {key: one for key, one in found.items() if set(_REQUIRED) <= set(one)}


def _flat(column: Any) -> Array | None:
    """(N, numbers) of lists of lists; None where rows lack them or have different numbers."""
    values, num_rows = column.combine_chunks(), len(column)
    while hasattr(values, "flatten") and hasattr(values.type, "value_type"):
        lengths = numbers_of(values.value_lengths()) if hasattr(values, "value_lengths") else np.zeros(0)
        if lengths is None or (len(lengths) and lengths.min() != lengths.max()):
            return None
        values = values.flatten()
    if values.null_count or not num_rows or len(values) % num_rows:
        return None
    if str(values.type) == "bool":  # of features of bool LeRobot's are too
        values = values.cast("int8")
    numbers = numbers_of(values)
    return None if numbers is None else numbers.astype(np.float64).reshape(num_rows, -1)


def _read(path: Path) -> Raw | None:
    try:
        found = json.loads(path.read_bytes())
        mark_used(path)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
