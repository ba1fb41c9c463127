"""The record of one episode, made where its values are at hand."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature
from epistream.sharding.format.statistics import MAX_QUANTILE_DIMS, NotFinite, Summary, count_not_finite, summarize
from epistream.sharding.format.texts import Texts
from epistream.sharding.manifest.episode_records import MAX_FEATURES, REMEDY, EpisodeRecords
from epistream.sharding.manifest.record_columns import FeatureRecords, smallest
from epistream.sharding.manifest.record_points import points_an_episode, take_points

# Texts beyond are no attributes to choose episodes by, but logs and descriptions of robots.
_MAX_TEXT = 200
_MAX_ATTRIBUTES = 200
# Moments take 24 bytes a dimension and episode. Point clouds and the like get records only in small jobs.
_WIDE_BYTES = 64 << 20


@dataclass(frozen=True)
class RecordRules:
    """What is kept of each episode of a job: the same for all of them, and for every process that makes some.

    Args:
        num_points: Points for quantiles of an episode at the most.
        features: That have records.
    """

    num_points: int
    features: frozenset[str]

    @staticmethod
    def of(features: Mapping[str, Feature], num_episodes: int) -> "RecordRules":
        """Those of a job of so many episodes with these features."""
        dims = {name: math.prod(one.shape) for name, one in features.items() if one.kind == "array"}
        narrow = {name: num for name, num in dims.items() if num <= MAX_QUANTILE_DIMS}
        kept, num_bytes = sorted(narrow)[:MAX_FEATURES], 0
        for name in sorted(dims.keys() - narrow, key=lambda name: (dims[name], name)):
            num_bytes += 24 * dims[name] * num_episodes
            if num_bytes <= _WIDE_BYTES and len(kept) < MAX_FEATURES:
                kept.append(name)
        return RecordRules(points_an_episode(list(narrow.values()), num_episodes), frozenset(kept))


@dataclass(frozen=True)
class Counted:
    """What is known of the values of one episode within its valid ranges: by feature, and as a record."""

    statistics: dict[str, Summary]
    not_finite: dict[str, NotFinite]
    records: EpisodeRecords


def count_episode(arrays: Mapping[str, NDArray[Any]], meta: EpisodeMeta, rules: RecordRules) -> Counted:
    """Look at all values of an episode.

    Args:
        arrays: feature -> (length, ...).
        meta: Of the episode.
        rules: Of the job.
    """
    valid = {name: valid_steps(values, meta.valid_ranges) for name, values in arrays.items()}
    statistics = {name: summarize(values) for name, values in valid.items()}
    not_finite = count_not_finite(valid)
    num_steps = meta.length if meta.valid_ranges is None else sum(stop - start for start, stop in meta.valid_ranges)
    num_points = min(num_steps, rules.num_points)
    identity = identity_in_records(meta)
    features = {}
    for name, one in statistics.items():
        if name in rules.features:
            points = take_points(valid[name], num_points, identity) if one.levels else None
            features[name] = _of_feature(one, not_finite.get(name), points)
    text = describe_attributes(meta.attributes)
    records = EpisodeRecords(
        np.array([num_steps]), np.array([num_points]), features, Texts.of([text], "attributes", REMEDY)
    )
    return Counted(statistics, not_finite, records)


def identity_in_records(meta: EpisodeMeta) -> str:
    """What the points of an episode are chosen by: the same in every process, and after every edit."""
    return f"{meta.source}\n{meta.source_path}\n{meta.length}"


def valid_steps(values: NDArray[Any], ranges: Sequence[tuple[int, int]] | None) -> NDArray[Any]:
    """The values (n, ...) of the steps that lie within `ranges`, of (length, ...); all of them if None."""
    if ranges is None:
        return values
    return np.concatenate([values[:0], *(values[start:stop] for start, stop in ranges)])


def describe_attributes(attributes: Mapping[str, Any]) -> str:
    """The scalar ones as a JSON map, nested maps flattened; an empty text for none. Long texts are left out."""
    found: dict[str, Any] = {}
    for name, value in _scalars(attributes, ""):
        if len(found) == _MAX_ATTRIBUTES:
            break
        found.setdefault(name, value)
    return json.dumps(found, separators=(",", ":")) if found else ""


def _scalars(attributes: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    for key, value in attributes.items():
        name = f"{before}{key}"
        if isinstance(value, Mapping):
            if name.count(".") < 8:  # deeper ones are trees, not attributes
                yield from _scalars(value, f"{name}.")
        elif isinstance(value, str):
            if len(value) <= _MAX_TEXT:
                yield name, value
        elif isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value)):
            yield name, value


def _of_feature(one: Summary, odd: NotFinite | None, points: NDArray[Any] | None) -> FeatureRecords:
    has_all = bool((one.count == one.num_steps).all())
    return FeatureRecords(
        shape=one.shape,
        mean=one.mean[None],
        squares=one.squares[None],
        minimum=smallest(one.minimum[None]),
        maximum=smallest(one.maximum[None]),
        count=None if has_all else one.count[None],
        not_finite=None if odd is None else np.array([[odd.nan, odd.inf, odd.steps]]),
        points=points,
    )
