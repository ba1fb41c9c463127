"""The statistics of a whole dataset: what a manifest may say, the sketches beside it, and several datasets joined."""

import json
import logging
import shlex
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial, reduce
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import FormatError, SourceError
from epistream.lazy import lazy
from epistream.sharding.files.storage import Options, read_start
from epistream.sharding.format.features import Feature
from epistream.sharding.format.statistics import (
    MAX_POINTS,
    QUANTILES,
    NotFinite,
    Sketch,
    Summary,
    add_counts,
    merge_sketches,
    not_finite_of,
    plain_numbers,
    quantiles_of,
)
from epistream.sharding.format.tables import parse_tables, write_tables

_log = logging.getLogger(__name__)

KIND = "epistream.dataset-sketches"
# Two features of 14 dimensions take 2 MiB at the most; those beyond it are left out, the widest first.
MAX_SKETCH_BYTES = 64 << 20
_MAX_LEVELS = 64
_REMEDY = (
    "Nothing that is streamed needs it. Remove it, or make it anew with 'epistream index URL --overwrite' or by "
    "packing again."
)

Loaded = tuple[Mapping[str, Sketch], Mapping[str, NotFinite]]
Plain = Mapping[str, Mapping[str, Any]]
Array = NDArray[np.float64]

# Each has the shape of one step, as nested lists (a number for a feature without axes). Quantiles may be missing
# (a feature with very many dimensions has none), and `finite`, the finite values of each dimension, when it is
# `count` everywhere.
_REQUIRED = ("mean", "std", "min", "max")
_KNOWN = frozenset({"count", "finite", *_REQUIRED, *QUANTILES})


def statistics_problem(
    statistics: Plain, features: Mapping[str, Feature], not_finite: Mapping[str, NotFinite] | None = None
) -> str | None:
    """The first thing wrong with the statistics of a manifest, or None.

    `count` is the number of steps they were computed on. A number that is not finite is stored as null, because
    JSON has no other word for it; numpy reads null as NaN.
    """
    for name in (*statistics, *(not_finite or ())):
        if name not in features or features[name].kind != "array":
            return f"statistics of {name!r:.80}, wanted array features only"
    for name, values in statistics.items():
        if not isinstance(values, Mapping) or not {"count", *_REQUIRED} <= set(values) <= _KNOWN:
            return f"statistics of {name}: {list(values)!r:.200}, wanted count, mean, std, min, max and quantiles"
        if type(values["count"]) is not int or not 1 <= values["count"] < 1 << 63:
            return f"statistics of {name}: count {values['count']!r:.40}, wanted at least 1 and below 2**63"
        for key in set(values) - {"count"}:
            try:
                shape = np.asarray(values[key], np.float64).shape
            except (TypeError, ValueError, OverflowError):
                return f"statistics of {name}: {key} {values[key]!r:.80}, wanted numbers or null"
            if shape != features[name].shape:
                return f"statistics of {name}: {key} of shape {shape}, wanted {features[name].shape}"
    return None


def sketch_key(fingerprint: str, statistics: Plain) -> str:
    """Hexadecimal: of which dataset, and of which statistics of it, a file of sketches is."""
    said = json.dumps([fingerprint, statistics], sort_keys=True)
    return xxhash.xxh3_128_hexdigest(said.encode())


def pack_sketches(key: str, sketches: Mapping[str, Sketch], not_finite: Mapping[str, NotFinite] | None = None) -> bytes:
    """The file of sketches; the same input gives the same bytes.

    Args:
        key: `sketch_key`.
        sketches: By feature; what would make the file too large is left out.
        not_finite: By feature, where nothing else says so.
    """
    points = {name: _smallest(np.concatenate(sketch)) for name, sketch in sketches.items() if sketch}
    num_bytes, arrays, sizes = 0, {}, {}
    for name in sorted(points, key=lambda name: (points[name].nbytes, name)):
        num_bytes += points[name].nbytes
        if num_bytes > MAX_SKETCH_BYTES // 2:
            break
        arrays[name], sizes[name] = points[name], [len(level) for level in sketches[name]]
    counts = {name: one.to_dict() for name, one in (not_finite or {}).items()}
    return write_tables(KIND, {"of": key, "sizes": sizes, "not_finite": counts}, arrays)


def _smallest(points: Array) -> NDArray[Any]:
    """As float32 where that is exact: most features are stored so."""
    with np.errstate(over="ignore"):
        smaller = points.astype(np.float32)
    return smaller if np.array_equal(smaller, points, equal_nan=True) else points


def parse_sketches(data: bytes, key: str, statistics: Plain, where: str) -> Loaded:
    """The inverse of `pack_sketches`, compared with the statistics that it should be of.

    Raises:
        VersionError: If the container is of a later version.
        FormatError: If it is torn, of another dataset, or says anything that cannot be.
    """
    if len(data) > MAX_SKETCH_BYTES:
        raise FormatError(f"{where}: more than {MAX_SKETCH_BYTES:,} bytes, wanted fewer. {_REMEDY}")
    tables = parse_tables(data, KIND, where, _REMEDY)
    of, sizes, counts = (tables.meta.get(name) for name in ("of", "sizes", "not_finite"))
    if of != key:
        raise FormatError(f"{where}: sketches of other statistics, {of!r:.60}, wanted {key!r}. {_REMEDY}")
    if not isinstance(sizes, dict) or set(sizes) != set(tables.arrays) or not set(sizes) <= set(statistics):
        raise FormatError(f"{where}: sketches of {list(tables.arrays)!r:.200}, wanted those of features. {_REMEDY}")
    try:
        not_finite = not_finite_of(counts)
        sketches = {
            name: _levels(points, sizes[name], np.size(statistics[name]["mean"]), statistics[name]["count"])
            for name, points in tables.arrays.items()
        }
    except ValueError as error:
        raise FormatError(f"{where}: {error}. {_REMEDY}") from error
    return sketches, not_finite


def _levels(points: NDArray[Any], sizes: object, num_dims: int, num_steps: int) -> Sketch:
    if not isinstance(sizes, list) or not 0 < len(sizes) <= _MAX_LEVELS:
        raise ValueError(f"levels {sizes!r:.80}, wanted 1 to {_MAX_LEVELS} sizes")
    if not all(type(size) is int and 0 <= size <= MAX_POINTS for size in sizes):
        raise ValueError(f"levels of {sizes!r:.200} points, wanted at most {MAX_POINTS} each")
    if points.dtype.kind != "f" or points.shape != (sum(sizes), num_dims):
        raise ValueError(f"points {points.dtype} {points.shape}, wanted {sum(sizes)} of {num_dims} dimensions")
    weight = sum(size << level for level, size in enumerate(sizes))
    if weight != num_steps:
        raise ValueError(f"points that stand for {weight:,} steps, wanted {num_steps:,}")
    return tuple(np.split(points.astype(np.float64), np.cumsum(sizes[:-1])))


def read_sketches(url: str, key: str, statistics: Plain, options: Options) -> Loaded | None:
    """What the file `url` says; None if it is not there, or cannot be had.

    Raises:
        FormatError, VersionError: As `parse_sketches`.
    """
    try:
        data = read_start(url, MAX_SKETCH_BYTES + 1, options)
    except SourceError as error:  # some stores say of what is not there that it is forbidden
        _log.info("no sketches of the statistics: %s", error)
        return None
    return None if data is None else parse_sketches(data, key, statistics, url)


def _nothing() -> Loaded | None:
    return None


def _made(sketches: Mapping[str, Sketch]) -> Loaded:
    return sketches, {}


class MoreStatistics:
    """What is known of a dataset's values beside its statistics. Picklable; reads nothing before it is asked.

    Args:
        load: Reads the sketches of the statistics, and how many values are not finite; None where neither is kept.
        not_finite: How many values are not finite, where that is known already.
    """

    def __init__(
        self, load: Callable[[], Loaded | None] = _nothing, not_finite: Mapping[str, NotFinite] | None = None
    ) -> None:
        self._load, self._not_finite = load, not_finite

    @classmethod
    def of(cls, summaries: Mapping[str, Summary], not_finite: Mapping[str, NotFinite]) -> "MoreStatistics":
        """What was just made."""
        return cls(partial(_made, {name: one.levels for name, one in summaries.items() if one.levels}), not_finite)

    @lazy
    def _loaded(self) -> Loaded | None:
        return self._load()

    @property
    def sketches(self) -> Mapping[str, Sketch]:
        """By feature; of those that there are."""
        return self._loaded[0] if self._loaded else {}

    @property
    def not_finite(self) -> Mapping[str, NotFinite]:
        """By feature; empty where all values are finite, or nothing is known."""
        if self._not_finite is not None:
            return self._not_finite
        return self._loaded[1] if self._loaded else {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_load": self._load, "_not_finite": self._not_finite}  # read again where somebody asks


NO_MORE = MoreStatistics()


def joined_more(parts: Sequence[MoreStatistics], features: Collection[str]) -> MoreStatistics:
    """That of several datasets together, for the features that are alike in all."""
    if all(part is NO_MORE for part in parts):
        return NO_MORE
    return MoreStatistics(partial(_load_joined, tuple(parts), frozenset(features)))


def _load_joined(parts: Sequence[MoreStatistics], features: Collection[str]) -> Loaded:
    names = [name for name in parts[0].sketches if name in features and all(name in part.sketches for part in parts)]
    sketches = {name: reduce(merge_sketches, (part.sketches[name] for part in parts)) for name in names}
    not_finite = add_counts(part.not_finite for part in parts)
    return sketches, {name: counts for name, counts in not_finite.items() if name in features}


class StatisticsPart(NamedTuple):
    """One of several datasets: its URL for messages, its statistics, what else is known of them, and whose they are."""

    url: str
    statistics: Plain
    more: MoreStatistics
    is_lerobot: bool = False

    @property
    def making_sketches(self) -> str:
        """The command for it."""
        url = shlex.quote(self.url)
        return f"epistream pack {url} OUT" if self.is_lerobot else f"epistream index {url} --overwrite"


class JoinedStatistics(Mapping[str, Mapping[str, Any]]):
    """Statistics of several datasets together, for the features that all of them have; made on the first look.

    count, mean, std, min and max are those of all steps. So are the quantiles where each dataset has a sketch of the
    feature: within the error of `statistics`. They cannot be had from quantiles alone: where a sketch is missing, they
    are the mean of the parts' quantiles, weighted by steps, and the feature is `estimated`.

    Args:
        parts: The datasets.
        more: What is known of all of them.
        features: Those that are alike in all of them.
    """

    def __init__(self, parts: Sequence[StatisticsPart], more: MoreStatistics, features: Collection[str]) -> None:
        self._parts, self._more, self._features = tuple(parts), more, frozenset(features)

    @lazy
    def moments(self) -> Plain:
        """The same, with every quantile estimated: for this no sketch is read."""
        all_of_them = [moments_of(part.statistics) for part in self._parts]
        return merge_statistics(
            [{name: values for name, values in one.items() if name in self._features} for one in all_of_them]
        )

    @lazy
    def estimated(self) -> tuple[str, ...]:
        """Features whose quantiles are estimates that lie between the lowest and the highest of the parts."""
        sketches = self._more.sketches
        return tuple(name for name, values in self.moments.items() if "q01" in values and name not in sketches)

    @lazy
    def _merged(self) -> Plain:
        sketches, merged = self._more.sketches, {}
        for name, values in self.moments.items():
            merged[name] = {**values, **_plain_quantiles(sketches[name], values)} if name in sketches else values
        if self.estimated:
            lacking = [one for one in self._parts if any(name not in one.more.sketches for name in self.estimated)]
            _log.warning(
                "%s: no sketch of %s beside the manifest, as of earlier releases and LeRobot's data sets: quantiles of "
                "all datasets together are estimates. Make it with '%s'.",
                ", ".join(one.url for one in lacking),
                ", ".join(self.estimated),
                "' and '".join(one.making_sketches for one in lacking),
            )
        return merged

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return self._merged[name]

    def __contains__(self, name: object) -> bool:
        return name in self.moments

    def __iter__(self) -> Iterator[str]:
        return iter(self.moments)

    def __len__(self) -> int:
        return len(self.moments)

    def __repr__(self) -> str:
        return f"JoinedStatistics of {len(self._parts)} datasets: {', '.join(self)}"

    def __getstate__(self) -> dict[str, Any]:
        # Without what was worked out, which may be worked out again.
        return {"_parts": self._parts, "_more": self._more, "_features": self._features}


def moments_of(statistics: Plain) -> Plain:
    """Statistics of which no quantile is wanted: for these no sketch is read."""
    return statistics.moments if isinstance(statistics, JoinedStatistics) else statistics


def _plain_quantiles(sketch: Sketch, like: Mapping[str, Any]) -> dict[str, Any]:
    shape = np.shape(like["mean"])
    return {key: plain_numbers(value).reshape(shape).tolist() for key, value in quantiles_of(sketch).items()}


def merge_statistics(parts: Sequence[Mapping[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """Statistics of several datasets together, from theirs alone: see `JoinedStatistics`."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: _merge([part[name] for part in parts]) for name in names}


def _merge(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    def stack(key: str) -> Array:
        return np.array([part[key] for part in parts], np.float64)

    columns = {key: stack(key) for key in _REQUIRED}
    columns |= {key: stack(key) for key in QUANTILES if all(key in part for part in parts)}
    shape = columns["mean"].shape[1:]
    count = sum(part["count"] for part in parts)
    finite = np.array([np.broadcast_to(part.get("finite", part["count"]), shape) for part in parts], np.float64)
    known = finite.sum(axis=0)
    weight = finite / np.maximum(known, 1)

    def pooled(values: Array) -> Array:
        # A part without finite values has NaN for everything, and weighs nothing.
        total: Array = np.sum(weight * np.where(finite > 0, values, 0), axis=0)
        return total

    mean = pooled(columns["mean"])
    with np.errstate(over="ignore", invalid="ignore"):
        # Variance of the whole: what is within the parts, and what is between them.
        std = np.sqrt(pooled(columns["std"] ** 2 + (columns["mean"] - mean) ** 2))
    merged = {
        "mean": mean,
        "std": std,
        "min": np.where(finite > 0, columns["min"], np.inf).min(axis=0),
        "max": np.where(finite > 0, columns["max"], -np.inf).max(axis=0),
        **{key: pooled(columns[key]) for key in QUANTILES if key in columns},
    }
    result: dict[str, Any] = {"count": count}
    if (known != count).any():
        result["finite"] = known.astype(np.int64).tolist()
    return result | {key: plain_numbers(values, known > 0).tolist() for key, values in merged.items()}
