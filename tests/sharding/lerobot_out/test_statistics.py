"""Statistics are LeRobot's: the expected numbers were printed by its own functions, of releases 0.4.4 and 0.3.3."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from epistream.sharding.lerobot_out.statistics import (
    QUANTILES,
    PictureStatistics,
    array_statistics,
    columns_statistics,
    known_or_measured,
    merge_all,
    merged,
    sampled_steps,
)

SINGLE = (np.arange(12).reshape(6, 2) % 5 / 4 + 10).astype(np.float32)
WHOLE = np.array([3, 1, 4, 1, 5, 9, 2, 6])
FLAGS = np.array([False, False, True])
TABLES = np.arange(24, dtype=np.float64).reshape(4, 2, 3) ** 2
Y, X, CHANNEL = np.mgrid[:320, :200, :3]
PICTURES = [((X * (step + 1) + Y + 60 * CHANNEL) % 256).astype(np.uint8) for step in range(3)]

EXPECTED = {
    ("3.0", "SINGLE"): {
        "min": [10.0, 10.0],
        "max": [11.0, 11.0],
        # Exact; in single precision, as LeRobot sums, [0.3726734519004822, 0.3359375].
        "mean": [10.416666666666666, 10.458333333333334],
        "std": [0.3726779962499649, 0.3359274061791062],
        "count": [6],
        "q01": [10.0, 10.0],
        "q10": [10.0, 10.0],
        "q50": [10.250200271606445, 10.250200271606445],
        "q90": [10.999879837036133, 10.999879837036133],
        "q99": [10.999987983703614, 10.999987983703614],
    },
    ("3.0", "WHOLE"): {
        "min": [1],
        "max": [9],
        "mean": [3.875],
        "std": [2.5708704751503917],
        "count": [8],
        "q01": [0.9999999999],
        "q10": [0.9999999999],
        "q50": [3.00159999995004],
        "q90": [8.998720000099967],
        "q99": [8.999872000099996],
    },
    ("3.0", "FLAGS"): {
        "min": [False],
        "max": [True],
        "mean": [0.3333333333333333],
        "std": [0.4714045207910317],
        "count": [3],
        "q01": [-1e-10],
        "q10": [-1e-10],
        "q50": [-1e-10],
        "q90": [0.999940000099988],
        "q99": [0.9999940000999988],
    },
    ("3.0", "TABLES"): {
        "min": [0.0, 1.0, 4.0],
        "max": [441.0, 484.0, 529.0],
        "mean": [157.5, 179.5, 203.5],
        "std": [150.1274458585105, 163.3898711670953, 176.7264835840967],
        "count": [4],
        "q01": [-1e-10, 0.9999999999, 3.9999999999],
        "q10": [-1e-10, 0.9999999999, 3.9999999999],
        "q50": [81.05579999993675, 100.014999999941, 121.07499999994462],
        "q90": [440.9294400001, 483.92272000009996, 528.9160000001],
        "q99": [440.9929440001, 483.9922720001, 528.9916000001],
    },
    ("2.1", "SINGLE"): {
        "min": [10.0, 10.0],
        "max": [11.0, 11.0],
        "mean": [10.416666984558105, 10.458333015441895],
        "std": [0.3726780116558075, 0.33592742681503296],
        "count": [6],
    },
    ("2.1", "WHOLE"): {"min": [1], "max": [9], "mean": [3.875], "std": [2.5708704751503917], "count": [8]},
    ("2.1", "FLAGS"): {
        "min": [False],
        "max": [True],
        "mean": [0.3333333333333333],
        "std": [0.4714045207910317],
        "count": [3],
    },
    ("2.1", "TABLES"): {
        "min": [[0.0, 1.0, 4.0], [9.0, 16.0, 25.0]],
        "max": [[324.0, 361.0, 400.0], [441.0, 484.0, 529.0]],
        "mean": [[126.0, 145.0, 166.0], [189.0, 214.0, 241.0]],
        "std": [
            [126.0, 138.9100428334827, 151.90786681406595],
            [164.97272501841024, 178.08986495586996, 191.24852940611072],
        ],
        "count": [4],
    },
}
# Deviations are those of release 0.3.3: 0.4.4 squares in 8 bits and says 0.
OF_PICTURES = {
    "min": [0.0, 0.0, 0.0],
    "max": [0.996078431372549, 0.996078431372549, 0.996078431372549],
    "mean": [0.49414901960784313, 0.5060705882352942, 0.5032470588235294],
    "std": [0.28446688512017565, 0.28740563613501224, 0.29349474123419816],
    "count": [3],
    "q01": [0.007848981878079695, 0.007827941440341239, 0.007817285301331583],
    "q10": [0.1019276357151313, 0.1018321392867754, 0.09412888751258185],
    "q50": [0.49405848681888886, 0.5099665002970979, 0.5099139547165665],
    "q90": [0.894119392932626, 0.9018898856643461, 0.901984593837853],
    "q99": [0.9882286343313113, 0.9882517183221232, 0.9882617828991125],
}


@pytest.mark.parametrize(("version", "name"), EXPECTED)
def test_statistics_of_values_are_those_of_lerobot(version, name):
    found = array_statistics(globals()[name], version)
    expected = EXPECTED[version, name]
    assert list(found) == list(expected)
    for key, value in expected.items():
        # 0.4.4 reckons those of float32 in float32, which leaves the fifth digit of deviations to chance.
        rtol = 1e-4 if (version, name) == ("3.0", "SINGLE") else 1e-9
        np.testing.assert_allclose(found[key].astype(float), np.array(value, float), rtol=rtol, atol=1e-15)
        assert found[key].shape == np.shape(value)


@pytest.mark.parametrize("version", ["3.0", "2.1"])
@pytest.mark.parametrize("values", [3_000_000_000 + np.arange(40), (np.arange(40) / 7 + 1000).astype(np.float32)])
def test_deviation_of_large_values_is_theirs(version, values):
    rows = values[:, None].astype(np.float64)
    found = array_statistics(values[:, None], version)
    tolerance = {"rtol": 1e-6} if version == "3.0" else {"rtol": 1e-3}  # 0.3.3 takes float32 in float32
    np.testing.assert_allclose(
        found["std"].astype(float), np.sqrt(((rows - rows.mean(axis=0)) ** 2).mean(axis=0)), **tolerance
    )


@pytest.mark.parametrize("version", ["3.0", "2.1"])
def test_statistics_of_pictures_are_those_of_lerobot_but_for_its_overflow(version):
    measured = PictureStatistics()
    for picture in PICTURES:
        measured.add(picture)
    found = measured.result(version)
    wanted = [key for key in OF_PICTURES if version == "3.0" or key not in QUANTILES]
    assert list(found) == wanted
    for key in wanted:
        assert found[key].shape == ((1,) if key == "count" else (3, 1, 1))
        np.testing.assert_allclose(found[key].ravel(), OF_PICTURES[key], rtol=1e-9)


def test_statistics_of_grey_pictures_have_three_equal_channels():
    measured = PictureStatistics()
    measured.add(np.array([[[0], [255]]], np.uint8))
    assert measured.result("2.1")["mean"].ravel().tolist() == [0.5, 0.5, 0.5]
    assert measured.result("2.1")["std"].ravel().tolist() == [0.5, 0.5, 0.5]


def test_statistics_of_one_step_are_its_values():
    found = array_statistics(np.array([[1.5, -2.0]], np.float32), "3.0")
    for name in ("min", "max", "mean", *QUANTILES):
        assert found[name].tolist() == [1.5, -2.0]
    assert found["std"].tolist() == [0, 0]
    # LeRobot's would be of another shape here than of longer episodes, and break when these are joined.
    assert array_statistics(np.ones((1, 4, 3)), "3.0")["mean"].shape == (3,)


@pytest.mark.parametrize("version", ["3.0", "2.1"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_statistics_of_values_that_are_not_finite_do_not_fail(version, bad):
    found = array_statistics(np.array([[1.0, bad], [2.0, 0.0]], np.float32), version)
    assert np.isfinite(found["mean"]).tolist() == [True, False]


@pytest.mark.parametrize(
    ("length", "number"), [(1, 1), (2, 2), (99, 99), (100, 100), (400, 100), (1000, 177), (10_000, 1000)]
)
def test_sampled_steps_are_as_many_as_lerobot_takes_and_reach_both_ends(length, number):
    steps = sampled_steps(length)
    assert (len(steps), steps[0], steps[-1]) == (number, 0, length - 1)
    assert steps == sorted(set(steps))


def test_statistics_of_parts_give_those_of_the_whole():
    values = np.random.default_rng(0).normal(size=(60, 3))
    parts = [array_statistics(part, "3.0") for part in (values[:10], values[10:11], values[11:])]
    found, whole = merged(parts), array_statistics(values, "3.0")
    for name in ("min", "max", "mean", "std", "count"):
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-12)
    weights = [10, 1, 49]
    np.testing.assert_allclose(found["q50"], np.average([part["q50"] for part in parts], axis=0, weights=weights))


def test_statistics_of_many_episodes_do_not_depend_on_how_they_are_grouped(monkeypatch):
    episodes = [{"a": array_statistics(np.arange(n, dtype=float), "3.0")} for n in range(1, 30)]
    whole = merge_all(episodes)
    monkeypatch.setattr("epistream.sharding.lerobot_out.statistics._MERGED_AT_ONCE", 4)
    grouped = merge_all(episodes)
    for name, value in whole["a"].items():
        np.testing.assert_allclose(grouped["a"][name], value, rtol=1e-12)


def test_statistics_of_recorded_values_are_what_lerobot_wrote(shared_data):
    rows = pq.read_table(shared_data / "lerobot_v3" / "data" / "chunk-000" / "file-000.parquet").to_pydict()
    number = np.array(rows["episode_index"])
    names = ("observation.state", "action", "timestamp")
    values = {name: np.array(rows[name], np.float32) for name in names}
    values["timestamp"] = np.array(rows["frame_index"]) / 50  # before it was rounded
    total = merge_all({name: array_statistics(values[name][number == one], "3.0") for name in names} for one in (0, 1))
    said = json.loads((shared_data / "lerobot_v3" / "meta" / "stats.json").read_text())
    for name in names:
        for key, value in said[name].items():
            # It sums in single precision.
            close = {"rtol": 2e-4, "atol": 1e-6} if key in ("mean", "std") else {"rtol": 1e-9, "atol": 1e-12}
            np.testing.assert_allclose(total[name][key], value, **close, err_msg=f"{name} {key}")
        exact = values[name].astype(np.float64)
        for key, of_all in {"mean": exact.mean(axis=0), "std": exact.std(axis=0)}.items():
            np.testing.assert_allclose(total[name][key].squeeze(), of_all, 1e-9, 1e-12, err_msg=f"{name} {key}")


def test_statistics_of_values_that_hardly_differ_are_not_0():
    values = np.array([[1.5], [1.5 + 2**-14]], np.float32)
    assert array_statistics(values, "3.0")["std"].tolist() == [2**-15]


def plain_quantiles(column):
    """Of (N,) values, by all 5,000 bins, as LeRobot does it."""
    least, most = column.min(), column.max()
    if column.dtype == np.bool_:
        least, most = int(least), int(most)
    edges = np.linspace(least - 1e-10, most + 1e-10, 5001)
    counts = np.diff(np.searchsorted(np.sort(column), edges[:-1]), append=len(column))
    counts[0] += np.searchsorted(np.sort(column), edges[0])
    found, below = [], np.cumsum(counts)
    for quantile in QUANTILES.values():
        place = int(np.searchsorted(below, quantile * len(column)))
        if place == 0:
            found.append(float(edges[0]))
        else:
            share = (quantile * len(column) - below[place - 1]) / counts[place]
            found.append(float(edges[place] + share * (edges[place + 1] - edges[place])))
    return found


VALUES = {
    "spread": lambda rng, shape: rng.normal(size=shape),
    "steps": lambda rng, shape: np.round(rng.normal(size=shape) * 3),
    "far from 0": lambda rng, shape: rng.normal(size=shape) * 1e-5 + 1000,  # narrower bins than float32 tells
    "constant": lambda rng, shape: np.full(shape, rng.normal()),
    "mostly one": lambda rng, shape: np.where(rng.random(shape) < 0.95, 0.0, rng.normal(size=shape)),
    "huge": lambda rng, shape: rng.normal(size=shape) * 1e30,
    "tiny": lambda rng, shape: rng.normal(size=shape) * 1e-30,
}


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("kind", VALUES)
def test_quantiles_are_bit_for_bit_those_of_all_bins(dtype, kind):
    rng = np.random.default_rng(0)
    for length in (2, 3, 99, 100, 101, 1000):
        values = VALUES[kind](rng, (length, 3))
        if np.dtype(dtype).kind in "iu":
            values = np.abs(values).clip(0, 200)
        values = values > 0 if dtype == "bool" else values.astype(dtype)
        found = array_statistics(values, "3.0")
        np.testing.assert_array_equal(
            np.stack([found[name] for name in QUANTILES], axis=1), [plain_quantiles(column) for column in values.T]
        )


@pytest.mark.parametrize("version", ["3.0", "2.1"])
@pytest.mark.parametrize("length", [1, 2, 9, 150, 2500])
def test_statistics_of_columns_together_are_those_of_each(version, length):
    steps = np.arange(length)
    columns = {"time": steps / 50, "step": steps, "episode": np.full(length, 70_001), "index": 10**8 + steps}
    together = columns_statistics(columns, version)
    for name, column in columns.items():
        alone = array_statistics(column, version)
        assert list(together[name]) == list(alone)
        for key, value in alone.items():
            assert together[name][key].dtype == value.dtype
            np.testing.assert_array_equal(together[name][key], value)


def test_statistics_that_the_source_has_are_handed_over_and_nothing_is_worked_out(monkeypatch):
    values = np.linspace(0, 1, 12, dtype=np.float32).reshape(6, 2)
    known = {name: np.array([0.1, 0.2]) for name in ("min", "max", "mean", "std", *QUANTILES)}
    known["count"] = np.array([6])
    known_or_measured(values, known, "3.0")  # which learns the shapes
    monkeypatch.setattr("epistream.sharding.lerobot_out.statistics.array_statistics", lambda *_: 1 / 0)
    found = known_or_measured(values, known, "3.0")
    assert list(found) == ["min", "max", "mean", "std", "count", *QUANTILES]
    assert found["min"].dtype == np.float32
    np.testing.assert_array_equal(found["min"], np.float32([0.1, 0.2]))
    assert all((found[name] == known[name]).all() for name in ("mean", "std", *QUANTILES))


@pytest.mark.parametrize("change", ["count", "min", "q01", "std"])
def test_statistics_of_the_source_that_do_not_fit_are_worked_out(change):
    values = np.linspace(0, 1, 12).reshape(6, 2)
    known = {name: np.array([0.1, 0.2]) for name in ("min", "max", "mean", "std", *QUANTILES)} | {
        "count": np.array([6])
    }
    changed = {"count": {"count": np.array([7])}, "min": {"min": np.zeros(3)}}.get(change, {})
    known = {name: value for name, value in (known | changed).items() if name != change or changed}
    found, measured = known_or_measured(values, known, "3.0"), array_statistics(values, "3.0")
    kept = set() if change != "q01" else set(known)
    for name, value in measured.items():
        np.testing.assert_array_equal(found[name], known[name] if name in kept else value)
