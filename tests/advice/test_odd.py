"""What messages about odd HDF5 files advise, taken."""

import re

import every_layout
import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hdf5_files import aloha_raw

import epistream as es
from epistream.commands.pack import command
from epistream.errors import LayoutError


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def run(*arguments):
    result = CliRunner().invoke(command, [*map(str, arguments), "--workers", "1", "--codec", "raw"])
    return result.exit_code, result.output + str(result.exception or "")


def odd(folder, **changes):
    path = aloha_raw(folder / "in" / "a.hdf5", 6)
    with h5py.File(path, "r+") as file:
        for key, value in changes.items():
            name = key.replace("__", "/")
            if name in file:
                del file[name]
            file[name] = value
    return path


FAULTS = {
    "compound action": {"action": np.zeros(6, [("arm", "f4"), ("gripper", "f4")])},
    "cut action": {"action": np.zeros((5, 14))},
    "cut state": {"observations__qpos": np.zeros((5, 14))},
    "cut camera": {"observations__images__top": np.zeros((5, 8, 8, 3), np.uint8)},
    "link that leads nowhere": {"observations__force": h5py.SoftLink("/nowhere")},
    "camera that is a link that leads nowhere": {"observations__images__wrist": h5py.SoftLink("/nowhere")},
    "camera of a number that is a link": {"observations__images__317222071234": h5py.SoftLink("/nowhere")},
    "a link of another alphabet": {"observations__力": h5py.SoftLink("/nowhere")},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_drop_packs_without_what_is_at_fault(tmp_path, fault):
    path = odd(tmp_path, **FAULTS[fault])
    code, said = run(path, tmp_path / "out")
    assert code
    advised = re.search(r"pack with '(--drop [^']+)'", said)[1].split()
    code, said = run(path, tmp_path / "out", *advised)
    assert code == 0, said
    assert advised[1] not in es.open_dataset(tmp_path / "out").features


@pytest.mark.parametrize("fault", FAULTS)
def test_a_layout_file_streams_what_it_names_beside_what_is_at_fault(tmp_path, fault):
    path = odd(tmp_path, **FAULTS[fault])
    with pytest.raises(LayoutError, match=r"a stream of the file as it is takes what a layout file names \(layout="):
        es.open_dataset(path)
    description = tmp_path / "mine.yaml"
    description.write_text(
        "name: mine\nfeatures:\n  - {path: observations/images/angle, camera: angle}\n"
        "  - {path: observations/qvel, name: observation.qvel}\n"
    )
    stream = es.EpisodeStream(str(path), layout=str(description), batch_size=2)
    assert sorted(stream.job.features) == ["observation.images.angle", "observation.qvel"]


@pytest.mark.parametrize("names", [("Front", "front"), ("a b", "a_b"), ("front", "FRONT")])
def test_rename_keeps_two_names_apart_that_become_one(tmp_path, names):
    pictures = {f"observations__images__{name}": np.full((6, 8, 8, 3), 9, np.uint8) for name in names}
    path = odd(tmp_path, **pictures)
    code, said = run(path, tmp_path / "out")
    assert code
    option, pair = re.search(r"""Pack with "(--rename) '([^']+=observation\.images\.NAME)'\"""", said).groups()
    code, said = run(path, tmp_path / "out", option, pair.replace("NAME", "left"))
    assert code == 0, said
    assert "observation.images.left" in es.open_dataset(tmp_path / "out").features


def test_rename_of_numbers_keeps_two_names_apart_that_become_one(tmp_path):
    path = odd(tmp_path, observations__Force=np.zeros((6, 2)), observations__force=np.ones((6, 2)))
    _, said = run(path, tmp_path / "out")
    option, pair = re.search(r"""Pack with "(--rename) '([^']+)'\"""", said).groups()
    code, said = run(path, tmp_path / "out", option, pair.replace("NAME", "observation.torque"))
    assert code == 0, said
    assert {"observation.torque", "observation.force"} <= set(es.open_dataset(tmp_path / "out").features)


def test_a_layout_file_names_those_that_become_one_for_a_stream(tmp_path):
    path = odd(tmp_path, observations__Force=np.zeros((6, 2)), observations__force=np.ones((6, 2)))
    with pytest.raises(LayoutError, match=r"layout='FILE\.yaml'"):
        es.open_dataset(path)
    description = tmp_path / "mine.yaml"
    description.write_text(
        "name: mine\nfeatures:\n  - {path: observations/Force, name: observation.torque}\n"
        "  - {path: observations/force, name: observation.force}\n"
    )
    assert sorted(es.open_dataset(path, layout=str(description)).features) == [
        "observation.force",
        "observation.torque",
    ]


def test_rename_gives_a_made_up_name_another(tmp_path, caplog):
    path = odd(tmp_path, observations__images__317222071234=np.zeros((6, 8, 8, 3), np.uint8))
    assert run(path, tmp_path / "out")[0] == 0
    (told,) = [record.getMessage() for record in caplog.records]
    assert "observations/images/317222071234 is observation.images.cam_317222071234" in told
    assert told.endswith("Call them otherwise with --rename KEY=NAME")
    code, said = run(path, tmp_path / "out", "--overwrite", "--rename", "317222071234=wrist")
    assert code == 0, said
    assert "observation.images.wrist" in es.open_dataset(tmp_path / "out").features


def test_skip_bad_goes_on_without_the_file(tmp_path):
    odd(tmp_path, **FAULTS["compound action"])
    aloha_raw(tmp_path / "in" / "good.hdf5", 6)
    _, said = run(tmp_path / "in", tmp_path / "out")
    assert "--skip-bad" in said
    code, said = run(tmp_path / "in", tmp_path / "out", "--skip-bad")
    assert code == 0, said
    assert "left out: " in said


def test_a_layout_file_takes_some_of_too_many_datasets(tmp_path):
    path = every_layout.write("aloha", tmp_path)
    with h5py.File(path, "r+") as file:
        for number in range(4200):
            file.create_dataset(f"observations/x{number}", (every_layout.ROWS,), "u1")
    with pytest.raises(LayoutError, match="Name those that you want in a layout file"):
        es.open_dataset(path)
    (tmp_path / "mine.yaml").write_text("name: mine\nfeatures:\n  - {path: action, name: action}\n")
    assert list(es.open_dataset(path, layout=str(tmp_path / "mine.yaml")).features) == ["action"]
