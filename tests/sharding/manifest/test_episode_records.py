"""Records of episodes: chosen, joined and stored, they say of any episodes what packing these at once would say."""

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epistream.errors import FormatError, VersionError
from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.episode_records import NO_EPISODES, EpisodeRecords
from epistream.sharding.manifest.record_making import RecordRules, count_episode, describe_attributes
from epistream.sharding.manifest.record_points import sketch_of, take_points
from epistream.sharding.manifest.record_statistics import statistics_of

STATE, ACTION = "observation.state", "action"
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def feature(name, shape, dtype="float32"):
    return Feature(name=name, kind="array", dtype=dtype, shape=shape, codec="npy")


FEATURES = {STATE: feature(STATE, (3,)), ACTION: feature(ACTION, (2, 2), "float64"), "reward": feature("reward", ())}
EXACT = RecordRules.of(FEATURES, 1)


def values_of(seed, length=20, hole=None):
    """One episode: a state that only float32 holds, an action that needs float64, and a reward without axes."""
    random = np.random.default_rng(seed)
    state = (random.normal(size=(length, 3)) + 1000).astype(np.float32)
    if hole is not None:
        state[3:7, 1] = hole
    return {STATE: state, ACTION: random.normal(size=(length, 2, 2)), "reward": random.integers(0, 2, length) * 1.0}


def record(values, rules=EXACT, **about):
    return count_episode(values, EpisodeMeta(length=len(values["reward"]), **about), rules).records


def records_of(episodes, rules=EXACT):
    return EpisodeRecords.join([record(values, rules, source=f"{i}.hdf5") for i, values in enumerate(episodes)])


def assert_truth(found, episodes):
    """Counts and extremes exactly, moments to rounding, quantiles of few values as numpy has them."""
    for name in FEATURES:
        values = np.concatenate([one[name] for one in episodes]).astype(np.float64)
        finite = np.where(np.isfinite(values), values, np.nan)
        one = found.statistics[name]
        assert one["count"] == len(values)
        assert np.array_equal(one["min"], np.nanmin(finite, axis=0))
        assert np.array_equal(one["max"], np.nanmax(finite, axis=0))
        np.testing.assert_allclose(one["mean"], np.nanmean(finite, axis=0), rtol=1e-12)
        np.testing.assert_allclose(one["std"], np.nanstd(finite, axis=0), rtol=1e-9, atol=1e-12)
        for key, rank in QUANTILES.items():
            np.testing.assert_allclose(one[key], np.nanquantile(finite, rank, axis=0), rtol=1e-6, atol=1e-9)


def test_statistics_of_all_records_equal_numpy_on_all_values():
    episodes = [values_of(seed, 5 + seed) for seed in range(12)]
    assert_truth(statistics_of(records_of(episodes)), episodes)


def test_statistics_of_chosen_records_equal_numpy_on_those_episodes():
    episodes = [values_of(seed, 5 + seed) for seed in range(12)]
    records = records_of(episodes)
    assert_truth(statistics_of(records, [3, 0, 7]), [episodes[3], episodes[0], episodes[7]])
    mask = np.arange(12) % 2 == 1
    assert_truth(statistics_of(records, mask), episodes[1::2])
    assert statistics_of(records, []) == ({}, {}, {})


def test_values_that_are_not_finite_are_counted_and_left_out():
    episodes = [values_of(0), values_of(1, hole=np.nan), values_of(2, hole=-np.inf)]
    found = statistics_of(records_of(episodes))
    assert_truth(found, episodes)
    assert found.statistics[STATE]["finite"] == [60, 52, 60]
    assert {name: one.to_dict() for name, one in found.not_finite.items()} == {
        STATE: {"nan": 4, "inf": 4, "steps": 8, "episodes": 2}
    }
    assert statistics_of(records_of(episodes), [0]).not_finite == {}


def test_steps_outside_of_valid_ranges_do_not_count():
    values = values_of(5, length=30)
    one = record(values, valid_ranges=((2, 5), (10, 20)))
    kept = {name: np.concatenate([array[2:5], array[10:20]]) for name, array in values.items()}
    assert one.num_steps.tolist() == [13]
    assert_truth(statistics_of(one), [kept])


def test_episode_without_a_valid_step_counts_nothing():
    empty, whole = record(values_of(0), valid_ranges=()), values_of(1)
    assert empty.num_steps.tolist() == [0]
    assert statistics_of(empty) == ({}, {}, {})
    assert_truth(statistics_of(EpisodeRecords.join([empty, record(whole)])), [whole])


def test_records_come_back_from_their_file_as_they_were():
    episodes = [values_of(0), values_of(1, hole=np.inf)]
    records = records_of(episodes)
    data = records.to_bytes()
    again = EpisodeRecords.parse(data, "episodes.tables")
    assert again.to_bytes() == data
    assert list(again.features) == [STATE, ACTION, "reward"]
    assert again.features[STATE].points.dtype == np.float32
    assert again.features[ACTION].points.dtype == np.float64
    assert again.features[ACTION].mean.shape == (2, 4)
    assert_truth(statistics_of(again), episodes)
    assert pickle.loads(pickle.dumps(again)).to_bytes() == data


def test_file_is_the_same_however_its_records_were_put_together():
    parts = [record(values_of(seed), source=str(seed)) for seed in range(6)]
    at_once = EpisodeRecords.join(parts).to_bytes()
    assert EpisodeRecords.join([EpisodeRecords.join(parts[:4]), *parts[4:]]).to_bytes() == at_once
    assert EpisodeRecords.join(parts[::-1]).select([5, 4, 3, 2, 1, 0]).to_bytes() == at_once


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_any_additions_and_removals_say_what_packing_at_once_says(episodes, random):
    made = [values_of(seed, length, np.nan if hole else None) for seed, (length, hole) in enumerate(episodes)]
    singles = [record(values, source=str(number)) for number, values in enumerate(made)]
    order = random.sample(range(len(made)), random.randint(1, len(made)))
    cut = random.randint(0, len(order))
    halves = [EpisodeRecords.join([singles[i] for i in half]) for half in (order[:cut], order[cut:]) if half]
    kept = [number for number in range(len(order)) if random.random() < 0.7] or [0]
    edited = EpisodeRecords.join(halves).select(kept)
    at_once = EpisodeRecords.join([singles[order[number]] for number in kept])
    assert edited.to_bytes() == at_once.to_bytes()
    with np.errstate(all="ignore"):
        wanted = [made[order[number]] for number in kept]
        counted = np.isfinite(np.concatenate([one[STATE] for one in wanted])).all(axis=1)
        if counted.any():
            assert_truth(statistics_of(edited), wanted)


def test_join_keeps_features_of_all_parts_alone():
    one = record(values_of(0))
    other = one.only([STATE, "reward"])
    shaped = {**values_of(1), STATE: np.zeros((20, 4), np.float32)}
    assert list(EpisodeRecords.join([one, other]).features) == [STATE, "reward"]
    assert list(EpisodeRecords.join([one, record(shaped)]).features) == [ACTION, "reward"]
    assert EpisodeRecords.join([]) is NO_EPISODES
    assert EpisodeRecords.join([NO_EPISODES, one, NO_EPISODES]) is one


def test_renamed_features_keep_their_values_and_others_their_names():
    one = record(values_of(0))
    found = one.renamed({"state": STATE, "unknown": "nothing"})
    assert list(found.features) == ["state", ACTION, "reward"]
    assert found.features["state"] is one.features[STATE]
    assert list(one.renamed({STATE: ACTION, ACTION: STATE}).features) == [ACTION, STATE, "reward"]
    taken = one.renamed({ACTION: STATE})
    assert list(taken.features) == [ACTION, "reward"]
    assert taken.features[ACTION] is one.features[STATE]


def test_wide_features_have_moments_in_small_jobs_and_never_points():
    features = {"cloud": feature("cloud", (1000, 3)), STATE: FEATURES[STATE]}
    assert RecordRules.of(features, 10).features == {"cloud", STATE}
    assert RecordRules.of(features, 10_000).features == {STATE}
    values = {"cloud": np.ones((4, 1000, 3)), STATE: np.ones((4, 3), np.float32), "reward": np.ones(4)}
    found = record(values, RecordRules.of(features, 10))
    assert found.features["cloud"].points is None
    assert statistics_of(found).statistics["cloud"]["q01"][0] == [None, None, None]
    assert EpisodeRecords.parse(found.to_bytes(), "x").to_bytes() == found.to_bytes()


@pytest.mark.parametrize(("num_episodes", "num_points"), [(1, 1048576), (10_000, 104), (200_000, 8), (4_000_000, 2)])
def test_points_of_an_episode_are_as_many_as_all_episodes_leave_room_for(num_episodes, num_points):
    assert RecordRules.of({"a": feature("a", (8,))}, num_episodes).num_points == num_points


def test_points_of_an_episode_are_evenly_spaced_order_statistics():
    values = np.random.default_rng(0).permutation(1000)[:, None]
    found = take_points(values, 10, "an episode")[:, 0]
    assert np.diff(found).tolist() == [100.0] * 9
    assert 0 <= found[0] < 100
    assert take_points(values, 10, "another")[0, 0] != found[0]
    assert take_points(values, 1000, "any")[:, 0].tolist() == list(range(1000))


def test_quantiles_of_points_are_within_the_stated_error():
    # 300 episodes of which 16 points are kept: 0.3 / (16 sqrt(300)) = 0.1 % is one standard deviation.
    rules = RecordRules(16, frozenset({STATE}))
    random = np.random.default_rng(1)
    episodes = [
        {STATE: (random.normal(size=(200, 3)) * random.uniform(0.2, 3, 3) + random.normal(size=3)).astype(np.float32)}
        for _ in range(300)
    ]
    records = EpisodeRecords.join(
        [count_episode(one, EpisodeMeta(length=200, source=str(i)), rules).records for i, one in enumerate(episodes)]
    )
    values = np.concatenate([one[STATE] for one in episodes])
    assert records.num_points.tolist() == [16] * 300
    for key, rank in QUANTILES.items():
        found = np.array(statistics_of(records).statistics[STATE][key])
        assert np.abs((values < found).mean(axis=0) - rank).max() < 0.005


def test_many_points_are_thinned_without_drift():
    # 6,000 episodes alike, so that taking the same rank of each would show at once.
    rules, ramp = RecordRules(32, frozenset({"ramp"})), np.arange(64, dtype=np.float32)[:, None]
    one = count_episode({"ramp": ramp}, EpisodeMeta(length=64), rules).records
    found = statistics_of(EpisodeRecords.join([one] * 6000)).statistics["ramp"]
    points = one.features["ramp"].points[:, 0]
    assert abs(found["q01"][0] - points[0]) <= 0.1
    assert abs(found["q99"][0] - points[-1]) <= 0.1


@pytest.mark.parametrize("num_steps", [1, 2, 2047, 2048, 2049, 4095, 4096, 5000, 123_457, 10**9 + 7])
def test_sketch_stands_for_every_step_once(num_steps):
    num_points = min(num_steps, 3000)
    points = np.random.default_rng(0).normal(size=(num_points, 2)).astype(np.float32)
    weights = np.full(num_points, num_steps / num_points, np.float32)
    found = sketch_of(points, weights, num_steps)
    assert sum(len(level) << number for number, level in enumerate(found)) == num_steps
    assert all(len(level) <= 2048 for level in found)
    for rank in (0.1, 0.5, 0.9):
        values = np.concatenate(found)
        shares = np.concatenate([np.full(len(level), 2.0**number) for number, level in enumerate(found)])
        order = np.argsort(values[:, 0])
        at = np.searchsorted(np.cumsum(shares[order]), rank * num_steps)
        assert abs((points[:, 0] <= values[order[at], 0]).mean() - rank) < 1 / 1024 + 1 / num_points


def test_attributes_are_scalars_with_dotted_names():
    given_ = {"success": True, "env": {"seed": 7, "sim": {"dt": 0.5}}, "notes": "n" * 201, "list": [1], "none": None}
    one, none = record(values_of(0), attributes=given_), record(values_of(1))
    records = EpisodeRecords.join([one, none, record(values_of(2), attributes={"operator": "Łucja"})])
    again = EpisodeRecords.parse(records.to_bytes(), "x")
    assert again.attributes(0) == {"success": True, "env.seed": 7, "env.sim.dt": 0.5}
    assert again.attributes(1) == {}
    assert again.attribute_columns(["operator", "env.seed", "nobody"]) == {
        "operator": [None, None, "Łucja"],
        "env.seed": [7, None, None],
        "nobody": [None, None, None],
    }
    assert list(again.attribute_columns()) == ["success", "env.seed", "env.sim.dt", "operator"]
    assert again.select([2, 0]).attributes(1)["success"] is True


def test_attributes_that_nest_without_end_or_are_too_many_are_cut():
    deep: dict = {}
    for _ in range(100):
        deep = {"x": deep, "leaf": 1}
    assert list(json.loads(describe_attributes(deep))) == [f"{'x.' * depth}leaf" for depth in range(8, -1, -1)]
    assert len(json.loads(describe_attributes({str(number): number for number in range(1000)}))) == 200
    assert describe_attributes({"nan": float("nan"), "inf": float("inf")}) == ""


def changed(**tables):
    """The file with other tables, and a header that fits them."""
    records = records_of([values_of(0), values_of(1)])
    from epistream.sharding.format.tables import parse_tables, write_tables

    parsed = parse_tables(records.to_bytes(), "epistream.dataset-episodes", "x", "")
    meta = {**parsed.meta, **tables.pop("meta", {})}
    arrays = {**parsed.arrays, **{name.replace("__", ":"): value for name, value in tables.items()}}
    return write_tables("epistream.dataset-episodes", meta, {k: v for k, v in arrays.items() if v is not None})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(num_steps=np.array([20])), "1 episodes, wanted 2 of everything"),
        (changed(num_steps=np.array([-1, 20])), "fewer than 0"),
        (changed(num_points=np.array([0, 40])), "no points of its values, or more than it has steps"),
        (
            changed(num_points=np.array([20, 19])),
            r"observation.state: points float32 \(40, 3\), wanted float64 \(39, 3",
        ),
        (changed(num_points=None), "table 'num_points' is missing"),
        (changed(attribute_offsets=np.array([0, 5, 0])), "offsets of texts that do not rise"),
        (changed(meta={"num_records": 3}), "2 episodes, wanted 3"),
        (changed(meta={"features": {STATE: [3, -1]}}), "wanted the shape of each"),
        (changed(meta={"features": {STATE: [2]}}), r"observation.state: mean float64 \(2, 3\), wanted float64 \(2, 2"),
        (changed(meta={"features": {STATE: [1 << 31] * 40}}), "observation.state: mean"),
        (changed(meta={"features": {"other": [3]}}), "'other' without mean"),
        (changed(meta={"features": 7}), "wanted the shape of each"),
        (changed(mean__reward=np.zeros((2, 1), np.int64)), "reward: mean int64"),
        (changed(squares__reward=np.full((2, 1), -1.0)), "reward: a negative sum of squares"),
        (changed(count__reward=np.full((2, 1), 21)), "reward: finite values"),
        (changed(not_finite__reward=np.full((2, 3), -1)), "reward: values that are not finite"),
    ],
)
def test_file_that_cannot_be_is_refused_by_name(data, message):
    with pytest.raises(FormatError, match=message) as caught:
        EpisodeRecords.parse(data, "episodes-00000000.tables")
    assert str(caught.value).startswith("episodes-00000000.tables: ")
    assert "epistream index URL --overwrite" in str(caught.value)


def test_file_that_is_torn_is_refused_at_every_length():
    data = records_of([values_of(0)]).to_bytes()
    for size in range(0, len(data), 97):
        with pytest.raises((FormatError, VersionError)):
            EpisodeRecords.parse(data[:size], "x")


def test_attributes_that_are_no_map_are_refused_on_the_look():
    blob = np.frombuffer(b"[1]{}", np.uint8)
    found = EpisodeRecords.parse(changed(attributes=blob, attribute_offsets=np.array([0, 3, 5])), "x")
    assert found.attributes(1) == {}
    with pytest.raises(FormatError, match="wanted a map"):
        found.attributes(0)
