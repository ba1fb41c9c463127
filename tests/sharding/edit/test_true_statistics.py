"""After any edits the statistics are those of packing the same episodes at once."""

import h5py
import numpy as np
import pytest
from editing.small import ACTION, STATE, VELOCITY, copied, faults, numbers, packed, record, recordings, steps_of

import epistream as es

PLACES = {STATE: "observations/qpos", VELOCITY: "observations/qvel", ACTION: "action"}
RANKS = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


def assert_statistics(url, files, ranges):
    """Those of some steps of some recordings as numpy says: in double precision, of so few all quantiles exactly."""
    statistics = es.open_dataset(url).statistics
    for name, place in PLACES.items():
        parts = []
        for path in files:
            with h5py.File(path) as file:
                start, stop = ranges.get(path, (0, None))
                parts.append(file[place][start:stop].astype(np.float64))
        values, said = np.concatenate(parts), statistics[name]
        assert said["count"] == len(values)
        assert said["min"] == values.min(axis=0).tolist()
        assert said["max"] == values.max(axis=0).tolist()
        np.testing.assert_allclose(said["mean"], values.mean(axis=0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(said["std"], values.std(axis=0), rtol=1e-9)
        for key, rank in RANKS.items():
            np.testing.assert_allclose(said[key], np.quantile(values, rank, axis=0), rtol=1e-6, atol=1e-7)


def assert_same_statistics(found, wanted):
    """Of two datasets: counts and extremes exactly, the rest to 1e-9."""
    assert found.keys() == wanted.keys()
    for name, said in wanted.items():
        for key, value in said.items():
            if key in ("count", "min", "max"):
                assert found[name][key] == value, (name, key)
            else:
                np.testing.assert_allclose(found[name][key], value, rtol=1e-9, atol=1e-9, err_msg=f"{name} {key}")


def test_statistics_after_each_edit_are_those_of_the_steps_that_are_left(files, more_files, url):
    left, ranges = list(files), {}
    es.edit.remove(url, "2, 5:7")
    left = [files[number] for number in (0, 1, 3, 4, 7, 8, 9)]
    assert_statistics(url, left, ranges)
    es.edit.trim(url, (1, -1), "0, 2")
    ranges = {left[0]: (1, 3), left[2]: (1, 6)}
    assert_statistics(url, left, ranges)
    es.edit.split(url, "val", "1, 2")
    train = [left[number] for number in (0, 3, 4, 5, 6)]
    assert_statistics(url, train, ranges)
    es.edit.add(url, more_files)
    assert_statistics(url, train + more_files, ranges)
    es.edit.compact(url)
    assert_statistics(url, train + more_files, ranges)
    es.edit.trim(url, (2, None), "0")  # of one that is trimmed already, in its new shard
    ranges[left[0]] = (2, 3)
    assert_statistics(url, train + more_files, ranges)
    es.edit.undo(url)
    ranges[left[0]] = (1, 3)
    assert_statistics(url, train + more_files, ranges)
    assert faults(url) == []


@pytest.mark.parametrize("seed", range(3))
def test_statistics_after_random_edits_equal_those_of_packing_the_rest(seed, tmp_path):
    random = np.random.default_rng(seed)
    files = recordings(tmp_path / "takes", range(24), size=(2, 2))
    left = list(range(6))
    url = packed([files[number] for number in left], tmp_path / "set0")
    unused = list(range(6, 24))
    for step in range(9):
        kind = random.choice(["add", "remove", "merge"]) if len(left) > 3 and len(unused) > 3 else "remove"
        if kind == "remove" and len(left) > 1:
            gone = sorted(random.choice(len(left), random.integers(1, 1 + len(left) // 2), replace=False).tolist())
            es.edit.remove(url, gone)
            left = [number for position, number in enumerate(left) if position not in gone]
        elif len(unused) > 2:
            new = [unused.pop(int(random.integers(len(unused)))) for _ in range(2)]
            if kind == "add":
                es.edit.add(url, [files[number] for number in new])
            else:
                other = packed([files[number] for number in new], tmp_path / f"other{step}")
                url = es.edit.merge([url, other], tmp_path / f"set{step + 1}", copy=bool(step % 2)).url
            left += new
    assert numbers(url) == {number: steps_of(number) for number in left}
    again = packed([files[number] for number in left], tmp_path / "again")
    found, wanted = es.open_dataset(url), es.open_dataset(again)
    assert_same_statistics(found.statistics, wanted.statistics)
    assert found.episode_length.tolist() == wanted.episode_length.tolist()
    assert faults(url) == []


def test_quantiles_of_many_steps_stay_within_the_stated_rank(tmp_path):
    files = [record(tmp_path / f"takes/{number}.hdf5", number, 1500, size=(2, 2)) for number in range(6)]
    url = packed(files[:4], tmp_path / "set")
    es.edit.remove(url, "1")
    es.edit.add(url, files[4:])
    es.edit.remove(url, "0")
    values = []
    for number in (2, 3, 4, 5):
        with h5py.File(files[number]) as file:
            values.append(file["action"][:, 2:])
    whole, said = np.sort(np.concatenate(values), axis=0), es.open_dataset(url).statistics[ACTION]
    assert said["count"] == 6000
    for key, rank in RANKS.items():
        for dim, quantile in enumerate(said[key][2:]):
            found = np.searchsorted(whole[:, dim], quantile) / len(whole)
            assert abs(found - rank) <= 1 / 1024, (key, dim)  # twice the stated error of one sketch


def test_values_that_are_not_finite_are_counted_of_what_is_left(tmp_path):
    files = recordings(tmp_path / "takes", range(4), size=(2, 2))
    with h5py.File(files[1], "r+") as file:
        file["action"][2, 3], file["action"][3, 4] = np.nan, np.inf
    url = packed(files, tmp_path / "set")
    whole = es.open_dataset(url).not_finite
    assert (whole[ACTION].nan, whole[ACTION].inf, whole[ACTION].steps, whole[ACTION].episodes) == (1, 1, 2, 1)
    es.edit.trim(url, (0, 3), "1")
    left = es.open_dataset(url).not_finite[ACTION]
    assert (left.nan, left.inf, left.steps, left.episodes) == (1, 0, 1, 1)
    assert faults(url) == []
    es.edit.remove(url, "1")
    assert dict(es.open_dataset(url).not_finite) == {}


def test_statistics_of_what_earlier_releases_packed_come_from_the_shards(files, url, tmp_path):
    """Those have no records of episodes: the first edit reads them from the shards."""
    import json
    from pathlib import Path

    path = Path(url, "dataset.json")
    said = json.loads(path.read_text())
    for one in said.pop("episodes"):
        Path(url, one["file"]).unlink()
    path.write_text(json.dumps({**said, "version": 2}))
    older = copied(url, tmp_path / "older")
    es.edit.remove(url, "0:4")
    assert_statistics(url, files[4:], {})
    es.edit.rename(older, {STATE: ACTION, ACTION: STATE})
    es.edit.remove(older, "1")
    es.edit.rename(older, {STATE: ACTION, ACTION: STATE})
    assert_statistics(older, [files[0], *files[2:]], {})
