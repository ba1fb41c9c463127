"""Statistics of LeRobot data sets: those that are there, in our shapes, and those of some episodes by its formulas."""

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from robots.lerobot_meta import QUANTILES, MadeSet, numbers, video, write_lines

from epistream.errors import FormatError
from epistream.sharding.lerobot_meta.features import features_of
from epistream.sharding.lerobot_meta.metadata import keep_metadata
from epistream.sharding.lerobot_meta.statistics import statistics_of

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
TOP = "observation.images.top"
FEATURES = {"observation.state": numbers(3), "next.reward": numbers(1), "next.done": numbers(1, "bool"), TOP: video()}
EPISODES = "meta/episodes_stats.jsonl"


def look(root, tmp_path, chosen=None):
    meta = keep_metadata(str(root), None, tmp_path / "kept")
    features, _ = features_of(meta.info)
    chosen = None if chosen is None else np.array(chosen)
    return statistics_of(meta, None, features, chosen, tmp_path / "kept")


def by_hand(made, episodes, key, quantiles=()):
    """Of all steps of some episodes, from theirs: sums of first and second moments."""
    of = [made.statistics_of(one, quantiles)[key] for one in episodes]
    counts = np.array([one["count"][0] for one in of], float)
    mean = sum(n * np.array(one["mean"]) for n, one in zip(counts, of, strict=True)) / counts.sum()
    second = sum(
        n * (np.array(one["std"]) ** 2 + np.array(one["mean"]) ** 2) for n, one in zip(counts, of, strict=True)
    )
    return {
        "count": int(counts.sum()),
        "mean": mean,
        "std": np.sqrt(second / counts.sum() - mean**2),
        "min": np.min([one["min"] for one in of], axis=0),
        "max": np.max([one["max"] for one in of], axis=0),
        **{
            name: sum(n * np.array(one[name]) for n, one in zip(counts, of, strict=True)) / counts.sum()
            for name in quantiles
        },
    }


def assert_same(found, wanted, shape):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(np.array(found[name], float), np.reshape(value, () if name == "count" else shape))
        assert name == "count" or np.shape(found[name]) == shape


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
@pytest.mark.parametrize("chosen", [[True, False, True], [True, True, True]])
def test_of_some_episodes_they_are_put_together_from_theirs(tmp_path, version, chosen):
    made = MadeSet(version, (5, 1, 7), FEATURES)
    root = made.write(tmp_path / "set")
    (root / "meta/stats.json").write_text("{}")
    found = look(root, tmp_path, chosen)
    episodes = np.flatnonzero(chosen)
    quantiles = QUANTILES if version == "v3.0" else ()
    assert set(found) == {"observation.state", "next.reward", "next.done"}
    for name, shape in (("observation.state", (3,)), ("next.reward", ()), ("next.done", ())):
        wanted = by_hand(made, episodes, name, quantiles)
        assert_same(found[name], wanted, shape)
    picture = found.source.read()[TOP]
    assert picture["count"] == [100 * len(episodes)]
    assert np.shape(picture["mean"]) == (3, 1, 1)
    np.testing.assert_allclose(picture["std"], by_hand(made, episodes, TOP, quantiles)["std"])


def test_of_all_they_are_those_of_the_file_in_the_shape_of_the_feature(tmp_path):
    root = MadeSet("v3.0", (5, 1, 7), FEATURES).write(tmp_path / "set")
    one = {"min": [0], "max": [2], "mean": [1.5], "std": [0.5], "count": [13], "q01": [0.1], "q50": [1], "q99": [1.9]}
    said = {"next.reward": one, "timestamp": one, "gone": one, TOP: {**one, "mean": [[[0.5]], [[0.25]], [[0.125]]]}}
    (root / "meta/stats.json").write_text(json.dumps({**said, "next.done": {**one, "min": [False], "max": [True]}}))
    found = look(root, tmp_path)
    ours = {"count": 13, "mean": 1.5, "std": 0.5, "min": 0.0, "max": 2.0, "q01": 0.1, "q50": 1.0, "q99": 1.9}
    assert dict(found) == {"next.reward": ours, "next.done": {**ours, "min": 0.0, "max": 1.0}}
    assert found.source.read()[TOP]["mean"] == [[[0.5]], [[0.25]], [[0.125]]]
    assert dict(pickle.loads(pickle.dumps(found))) == dict(found)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_without_the_file_they_are_put_together_of_all(tmp_path, version):
    made = MadeSet(version, (5, 1, 7), FEATURES)
    found = look(made.write(tmp_path / "set"), tmp_path)
    assert found["observation.state"]["count"] == 13
    wanted = by_hand(made, range(3), "observation.state", QUANTILES if version == "v3.0" else ())
    np.testing.assert_allclose(found["observation.state"]["mean"], wanted["mean"])


def test_v20_has_those_of_all_episodes_or_none(tmp_path):
    root = MadeSet("v2.0", (5, 1, 7), FEATURES).write(tmp_path / "set")
    assert dict(look(root, tmp_path)) == {}
    # That version wrote no counts.
    one = {"min": [0], "max": [2], "mean": [1], "std": [0.5]}
    (root / "meta/stats.json").write_text(json.dumps({"next.reward": one}))
    for chosen in (None, [True, False, True]):
        found = look(root, tmp_path, chosen)
        assert dict(found) == {"next.reward": {"count": 13, "mean": 1.0, "std": 0.5, "min": 0.0, "max": 2.0}}


@pytest.mark.skipif(not (SHARED / "lerobot_v3").exists(), reason="no recordings of LeRobot here")
def test_those_of_each_episode_together_are_what_lerobot_wrote_for_all(tmp_path):
    whole = look(SHARED / "lerobot_v3", tmp_path).source.read()
    together = look(SHARED / "lerobot_v3", tmp_path, [True, True]).source.read()
    assert whole.keys() == together.keys()
    for key, one in whole.items():
        for name, value in one.items():
            np.testing.assert_allclose(together[key][name], np.array(value, float), rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no map of maps"),
        ('{"next.reward": 3}', "no map of maps"),
        ('{"next.reward": {"mean": [1, 2], "std": [1], "min": [0], "max": [1], "count": [3]}}', "shape"),
        ('{"next.reward": {"mean": ["x"], "std": [1], "min": [0], "max": [1], "count": [3]}}', "next.reward"),
        ('{"next.reward": {"mean": [1], "std": [1], "min": [0], "max": [1], "count": []}}', "next.reward"),
        ('{"next.reward": {"mean": [1], "std": [1], "min": [0], "max": [1], "count": [0]}}', "count 0"),
    ],
)
def test_torn_statistics_of_all_are_named_when_somebody_looks(tmp_path, said, what):
    root = MadeSet("v3.0", (5, 1, 7), FEATURES).write(tmp_path / "set")
    (root / "meta/stats.json").write_text(said)
    found = look(root, tmp_path)
    with pytest.raises(FormatError, match=what):
        found["next.reward"]


def test_values_that_are_not_finite_are_null(tmp_path):
    root = MadeSet("v3.0", (5, 1, 7), FEATURES).write(tmp_path / "set")
    one = '{"mean": [NaN], "std": [Infinity], "min": [0], "max": [1], "count": [3]}'
    (root / "meta/stats.json").write_text(f'{{"next.reward": {one}}}')
    found = look(root, tmp_path)["next.reward"]
    assert (found["mean"], found["std"], found["min"]) == (None, None, 0.0)


def lines_of(made):
    return [{"episode_index": one, "stats": made.statistics_of(one)} for one in range(3)]


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda lines: lines[:2], "nothing of episode 2"),
        (lambda lines: [lines[0], *lines], "line 2: .*twice"),
        (lambda lines: [*lines, {"episode_index": 3, "stats": {}}], "line 4: .*out of range"),
        (lambda lines: [{"episode_index": "0", "stats": {}}, *lines], "line 1"),
        (lambda lines: [[], *lines], "line 1"),
        (lambda lines: [lines[0], {**lines[1], "stats": {"next.reward": {"mean": [1]}}}, lines[2]], "line 2: KeyError"),
        (lambda lines: [lines[0], {**lines[1], "stats": []}, lines[2]], "of of|line"),
    ],
)
def test_torn_lines_are_named(tmp_path, change, what):
    made = MadeSet("v2.1", (5, 1, 7), FEATURES)
    root = made.write(tmp_path / "set")
    write_lines(root / EPISODES, change(lines_of(made)))
    found = look(root, tmp_path)
    if what == "of of|line":  # no statistics of anything in one of them: none of all
        assert dict(found) == {}
        return
    with pytest.raises(FormatError, match=rf"{EPISODES}: {what}"):
        dict(found)


def test_numbers_that_differ_between_episodes_are_named(tmp_path):
    made = MadeSet("v2.1", (5, 1, 7), FEATURES)
    root = made.write(tmp_path / "set")
    lines = lines_of(made)
    lines[1]["stats"]["observation.state"]["mean"] = [1, 2]
    write_lines(root / EPISODES, lines)
    with pytest.raises(FormatError, match=r"mean of observation\.state"):
        dict(look(root, tmp_path))


def test_tables_of_which_some_episodes_have_no_statistics_give_those_that_all_have(tmp_path):
    root = MadeSet("v3.0", (5, 1, 7), FEATURES).write(tmp_path / "set")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    name = "stats/next.reward/mean"
    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, pa.array([[1.0], None, [2.0]])), path)
    assert set(look(root, tmp_path, [True, True, True])) == {"observation.state", "next.done"}


def test_they_are_put_together_once(tmp_path, monkeypatch):
    root = MadeSet("v2.1", (5, 1, 7), FEATURES).write(tmp_path / "set")
    first = dict(look(root, tmp_path))
    monkeypatch.setattr("epistream.sharding.lerobot_meta.statistics.of_lines", None)
    assert dict(look(root, tmp_path)) == first
    (kept,) = (tmp_path / "kept").glob("*.statistics-1.json")
    kept.write_text("torn")
    with pytest.raises(TypeError):
        dict(look(root, tmp_path))
