"""NaN and inf in a recording: counted, told by whoever looks, left out of statistics, and left in the data."""

import json

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hdf5_files import aloha_raw, manifest, robomimic

import epistream as es
from epistream.commands import cli
from epistream.errors import FormatError

STATE = "observation.state"
SAID = {
    STATE: {"nan": 2, "inf": 1, "steps": 2, "episodes": 1},
    "action": {"nan": 14, "inf": 0, "steps": 1, "episodes": 1},
}
LINE = "observation.state: 2 NaN and 1 inf in 2 steps of 1 episode"


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Three episodes; the second lost a sensor in two steps, the third its action in one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for number in range(3):
        aloha_raw(tmp_path / "in" / f"episode_{number}.hdf5", 12, number, cameras=("top",))
    with h5py.File(tmp_path / "in" / "episode_1.hdf5", "r+") as file:
        file["observations/qpos"][7, 2] = np.nan
        file["observations/qpos"][9, 3:5] = np.inf, np.nan
    with h5py.File(tmp_path / "in" / "episode_2.hdf5", "r+") as file:
        file["action"][4] = np.nan
    return tmp_path / "in"


def run(*arguments):
    done = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.output


def plain(counts):
    return {name: one.to_dict() for name, one in counts.items()}


def values_of(folder, path):
    found = []
    for file_path in sorted(folder.glob("*.hdf5")):
        with h5py.File(file_path) as file:
            found.append(file[path][()].astype(np.float64))
    return np.concatenate(found)


def test_values_that_are_not_finite_are_counted_in_report_manifest_and_dataset(recorded, tmp_path):
    report = es.pack(recorded, tmp_path / "out", codec="raw")
    assert plain(report.not_finite) == SAID
    assert manifest(tmp_path / "out")["not_finite"] == SAID
    dataset = es.open_dataset(tmp_path / "out")
    assert plain(dataset.not_finite) == SAID
    assert dataset.statistics[STATE]["finite"] == [36, 36, 35, 35, 35] + [36] * 9
    state = values_of(recorded, "observations/qpos")
    state[~np.isfinite(state)] = np.nan
    for key, function in {"mean": np.nanmean, "std": np.nanstd, "min": np.nanmin, "max": np.nanmax}.items():
        np.testing.assert_allclose(dataset.statistics[STATE][key], function(state, axis=0), rtol=1e-9)
    np.testing.assert_allclose(dataset.statistics[STATE]["q01"], np.nanquantile(state, 0.01, axis=0), rtol=1e-9)


def test_values_that_are_not_finite_are_told_by_pack_verify_and_inspect(recorded, tmp_path):
    packed = run("pack", recorded, tmp_path / "out", "--codec", "raw")
    assert LINE in packed
    assert "action: 14 NaN in 1 step of 1 episode" in packed
    assert LINE in run("verify", tmp_path / "out", "--statistics")
    assert LINE in run("inspect", tmp_path / "out")
    facts = json.loads(run("inspect", tmp_path / "out", "--json"))
    assert facts["not_finite"] == SAID


def test_values_that_are_not_finite_are_told_of_hdf5_files_and_lists_of_datasets(recorded, tmp_path):
    assert LINE in run("inspect", *sorted(recorded.glob("*.hdf5")))
    es.pack(recorded, tmp_path / "out", codec="raw")
    twice = {name: {key: 2 * count for key, count in counts.items()} for name, counts in SAID.items()}
    joined = es.open_dataset([tmp_path / "out", *sorted(recorded.glob("*.hdf5"))])
    assert plain(joined.not_finite) == twice
    assert joined.statistics[STATE]["finite"] == [72, 72, 70, 70, 70] + [72] * 9


def test_values_that_are_not_finite_are_counted_in_every_split_and_by_index(tmp_path):
    path = robomimic(tmp_path / "d.hdf5", {"demo_0": 6, "demo_1": 5}, {"train": ["demo_0"], "valid": ["demo_1"]})
    with h5py.File(path, "r+") as file:
        file["data/demo_1/actions"][2, 1] = -np.inf
    said = {"action": {"nan": 0, "inf": 1, "steps": 1, "episodes": 1}}
    es.pack(path, tmp_path / "out", codec="raw")
    dataset = es.open_dataset(tmp_path / "out")
    assert plain(dataset.not_finite) == said
    assert "finite" not in dataset.statistics["action"]  # those of the training episodes
    run("index", tmp_path / "out", "--overwrite")
    assert manifest(tmp_path / "out")["not_finite"] == said
    assert plain(es.open_dataset(path).not_finite) == said


def test_finished_job_that_is_resumed_tells_them_again(recorded, tmp_path):
    es.pack(recorded, tmp_path / "out", codec="raw")
    assert plain(es.pack(recorded, tmp_path / "out", codec="raw", resume=True).not_finite) == SAID


def test_manifest_of_finite_values_does_not_speak_of_others(tmp_path):
    es.pack(aloha_raw(tmp_path / "a.hdf5"), tmp_path / "out", codec="raw")
    assert "finite" not in (tmp_path / "out" / "dataset.json").read_text()
    assert es.open_dataset(tmp_path / "out").not_finite == {}


@pytest.mark.parametrize(
    "said",
    [
        ["x"],
        {"action": 3},
        {"action": {"nan": 1}},
        {"action": {"nan": -1, "inf": 0, "steps": 1, "episodes": 1}},
        {"action": {"nan": True, "inf": 0, "steps": 1, "episodes": 1}},
        {"nothing": {"nan": 1, "inf": 0, "steps": 1, "episodes": 1}},
        {"observation.images.top": {"nan": 1, "inf": 0, "steps": 1, "episodes": 1}},
    ],
)
def test_counts_that_cannot_be_are_refused(tmp_path, said):
    es.pack(aloha_raw(tmp_path / "a.hdf5", cameras=("top",)), tmp_path / "out", codec="raw")
    (tmp_path / "out" / "dataset.json").write_text(json.dumps(manifest(tmp_path / "out") | {"not_finite": said}))
    with pytest.raises(FormatError, match=r"dataset\.json: .*epistream index"):
        es.open_dataset(tmp_path / "out")


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantiles"])
@pytest.mark.parametrize("is_packed", [True, False])
def test_other_steps_are_normalised_to_finite_numbers(recorded, tmp_path, mode, is_packed):
    if is_packed:
        es.pack(recorded, tmp_path / "out", codec="raw")
    source = tmp_path / "out" if is_packed else recorded
    stream = es.EpisodeStream(source, batch_size=36, shuffle=False, normalize=mode, features=[STATE], cache="off")
    found = next(iter(stream))[STATE][:, 0].numpy()
    raw = values_of(recorded, "observations/qpos")
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(raw))
    assert np.abs(found[np.isfinite(found)]).max() < 20
    back = stream.normalizer.unnormalize(STATE, next(iter(stream))[STATE])[:, 0].numpy()
    np.testing.assert_allclose(back[np.isfinite(raw)], raw[np.isfinite(raw)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantiles"])
def test_dimensions_and_features_without_a_finite_value_are_only_passed_on(tmp_path, mode):
    with h5py.File(aloha_raw(tmp_path / "a.hdf5", 6, cameras=("top",)), "r+") as file:
        file["observations/qpos"][:, 3] = np.nan
        file["observations/qvel"][...] = np.nan
        wanted = file["observations/qpos"][()]
    es.pack(tmp_path / "a.hdf5", tmp_path / "out", codec="raw")
    dataset = es.open_dataset([tmp_path / "out", tmp_path / "out"])
    assert dataset.statistics[STATE]["mean"][3] is None
    assert dataset.statistics["observation.qvel"]["q99"] == [None] * 14
    assert "- " in run("inspect", tmp_path / "out")
    run("verify", tmp_path / "out", "--statistics")
    stream = es.EpisodeStream(
        tmp_path / "out", batch_size=6, shuffle=False, normalize=mode, features=[STATE, "observation.qvel"]
    )
    batch = next(iter(stream))
    assert np.isnan(batch["observation.qvel"].numpy()).all()
    np.testing.assert_array_equal(np.isnan(batch[STATE][:, 0].numpy()), np.isnan(wanted))


def test_values_whose_squares_are_too_large_have_no_deviation_and_no_warning(tmp_path):
    path = robomimic(tmp_path / "d.hdf5", {"demo_0": 6})
    with h5py.File(path, "r+") as file:
        file["data/demo_0/actions"][:, 0] = [1e200, -1e200, 0, 1, 2, 1.7e308]
    es.pack(path, tmp_path / "out", codec="raw")
    found = es.open_dataset([tmp_path / "out", tmp_path / "out"]).statistics["action"]
    assert (found["std"][0], found["min"][0], found["max"][0]) == (None, -1e200, 1.7e308)
    json.loads(run("inspect", tmp_path / "out", tmp_path / "out", "--json"))
