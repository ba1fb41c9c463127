"""Records of many episodes at once are those of each by itself."""

import numpy as np
import pytest
from editing.same_records import assert_same_records
from hypothesis import given, settings
from hypothesis import strategies as st

from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature
from epistream.sharding.format.texts import Texts
from epistream.sharding.manifest.episode_records import EpisodeRecords
from epistream.sharding.manifest.record_batches import count_episodes
from epistream.sharding.manifest.record_making import RecordRules, count_episode, identity_in_records

DTYPES = {
    "f32": ("float32", (3,)),
    "f64": ("float64", (2, 2)),
    "half": ("float16", (1,)),
    "int": ("int64", ()),
    "flag": ("bool", (2,)),
    "wide": ("float32", (1030,)),
}
FEATURES = {
    name: Feature(name=name, kind="array", dtype=dtype, shape=shape, codec="npy")
    for name, (dtype, shape) in DTYPES.items()
}


def values_of(seed: int, length: int, holes: bool) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    made = {}
    for name, one in FEATURES.items():
        values = random.normal(size=(length, *one.shape)) * 50 + 1000 * (seed % 3)
        made[name] = values.astype(one.dtype)
        if holes and made[name].dtype.kind == "f":
            odd = random.random(made[name].shape)
            made[name][odd < 0.2] = np.nan
            made[name][odd > 0.9] = -np.inf
    return made


def both_ways(episodes: list, ranges: list, rules: RecordRules) -> tuple[EpisodeRecords, EpisodeRecords]:
    """The records made at once, and one by one."""
    metas = [
        EpisodeMeta(length=max(1, len(one["int"])), source=f"{number}.hdf5", valid_ranges=valid)
        for number, (one, valid) in enumerate(zip(episodes, ranges, strict=True))
    ]
    alone = [count_episode(one, meta, rules).records for one, meta in zip(episodes, metas, strict=True)]
    valid = [
        [(0, len(one["int"]))] if one_range is None else one_range
        for one, one_range in zip(episodes, ranges, strict=True)
    ]
    values = {
        name: np.concatenate(
            [one[name][start:stop] for one, some in zip(episodes, valid, strict=True) for start, stop in some]
            or [episodes[0][name][:0]]
        )
        for name in FEATURES
    }
    together = count_episodes(
        values,
        np.array([sum(stop - start for start, stop in some) for some in valid], np.int64),
        [identity_in_records(meta) for meta in metas],
        Texts.of([""] * len(metas), "attributes"),
        rules,
    )
    return together, EpisodeRecords.join(alone)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.booleans(), st.sampled_from([None, "some", "none"])), min_size=1, max_size=7
    ),
    st.sampled_from([1, 3, 8, 1000]),
)
def test_records_made_at_once_are_those_made_one_by_one(episodes, num_points):
    made, ranges = [], []
    for number, (length, holes, valid) in enumerate(episodes):
        made.append(values_of(number, length, holes))
        some = ((0, 1), (length - 1, length)) if length > 2 else ((0, 1),)
        ranges.append({None: None, "some": some, "none": ()}[valid])
    together, alone = both_ways(made, ranges, RecordRules(num_points, frozenset(FEATURES)))
    assert_same_records(
        EpisodeRecords.parse(together.to_bytes(), "together"), EpisodeRecords.parse(alone.to_bytes(), "alone")
    )


def test_values_far_from_zero_keep_their_digits():
    values = (np.random.default_rng(0).normal(size=(1000, 1)) + 1e9).astype(np.float64)
    rules = RecordRules(10, frozenset({"far"}))
    found = count_episodes(
        {"far": values}, np.array([400, 0, 600]), ["a", "b", "c"], Texts.of(["", "", ""], "attributes"), rules
    ).features["far"]
    for row, part in ((0, values[:400]), (2, values[400:])):
        assert found.squares[row, 0] == pytest.approx((part - part.mean()).var() * len(part), rel=1e-9)


def test_features_without_records_are_left_out():
    values = {name: one for name, one in values_of(0, 5, False).items()}
    found = count_episodes(
        values, np.array([5]), ["a"], Texts.of([""], "attributes"), RecordRules(4, frozenset({"int"}))
    )
    assert list(found.features) == ["int"]
