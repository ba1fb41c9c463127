"""Formats of others, broken transfers, and what is no file at all: each is named, with what to do, everywhere."""

import gzip
import json
import os
import pickle
import shutil
import socket
import tempfile
import zipfile
from pathlib import Path

import fsspec
import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hdf5_files import aloha_raw

import epistream as es
from epistream.commands import cli
from epistream.errors import EpistreamError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache-home"))


def says(action):
    with pytest.raises(EpistreamError) as refused:
        action()
    return str(refused.value)


def everywhere(path, out):
    """What is said of a path, without the path itself, by everything that is given sources."""
    texts = [
        says(lambda: es.pack(path, out)),
        says(lambda: es.EpisodeStream(str(path))),
        says(lambda: es.EpisodeStream(str(path), on_bad="skip")),
    ]
    for command in ("inspect", "plan"):
        done = CliRunner().invoke(cli, [command, str(path)])
        assert isinstance(done.exception, EpistreamError)
        texts.append(str(done.exception))
    return [text.replace(str(path), "") for text in texts]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 250811904\n"
FOLDERS = {
    "RLDS": {"1.0.0/dataset_info.json": b"{}", "1.0.0/features.json": b"{}"},
    "TFDS": {"x-train.tfrecord-00000-of-00001": b""},
    "a zarr": {"data/action/.zarray": b"{}", ".zgroup": b"{}", "meta/episode_ends/.zarray": b"{}"},
    "zarr": {"zarr.json": b"{}", "action/zarr.json": b"{}", "action/c/0": b"x"},
    "a rosbag2 recording (mcap)": {"metadata.yaml": b"", "run_0.mcap": b"\x89MCAP0\r\n"},
    "a rosbag2 recording": {"run/metadata.yaml": b"", "run/run_0.db3": b"SQLite format 3\x00"},
    "mcap recordings": {"a/run.mcap": b"\x89MCAP0\r\n"},
    "rosbags of ROS 1": {"run.bag": b"#ROSBAG V2.0"},
    "a Lance dataset": {"_versions/1.manifest": b"", "_transactions/0.txn": b"", "data/0.lance": b""},
    "Parquet tables": {"train-00000.parquet": b"PAR1"},
    "numpy files": {"episode_0000.npz": b"PK\x03\x04", "README.md": b""},
    "pickles": {"traj0/obs_dict.pkl": b"", "traj0/images0/im_0.jpg": b""},
    "videos": {"top/0.mp4": b"", "top/0.json": b"{}"},
    "pictures": {"top/0.png": b""},
    "DVC": {"episodes.h5.dvc": b"outs:\n- md5: 0\n"},
    "compressed": {"episode_0.hdf5.gz": b"\x1f\x8b"},
    "unfinished download": {"episode_0.hdf5.part": b"x"},
}


@pytest.mark.parametrize("what", FOLDERS)
def test_folder_of_another_format_is_named_by_all_who_are_given_it(tmp_path, what):
    for name, data in FOLDERS[what].items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    for text in everywhere(tmp_path / "in", tmp_path / "out"):
        assert what in text
        assert any(step in text for step in ("Formats of others", "dvc pull", "Unpack it", "Let it finish")), text


LEROBOT = {
    "fps None, wanted a number": {
        "meta/info.json": b'{"codebase_version": "v2.1"}',
        "meta/episodes.jsonl": b"{}",
        "data/chunk-000/episode_000000.parquet": b"PAR1",
        "videos/chunk-000/observation.images.top/episode_000000.mp4": b"",
    },
    "codebase_version None": {"meta/info.json": b"{}", "meta/episodes/chunk-000/file-000.parquet": b"PAR1"},
    "LeRobot's format v1.6, wanted v2.0": {"meta/info.json": b'{"codebase_version": "v1.6"}'},
    "git lfs pull": {"meta/info.json": LFS, "data/x.parquet": LFS},
    "no JSON": {"meta/info.json": b"[" * 100_000, "meta/episodes.jsonl": b"{}"},
}


@pytest.mark.parametrize("is_remote", [False, True])
@pytest.mark.parametrize("what", LEROBOT)
def test_torn_set_of_lerobot_s_is_named_by_all_who_stream_it(tmp_path, what, is_remote):
    url = f"memory://foreign/{list(LEROBOT).index(what)}" if is_remote else str(tmp_path / "in")
    for name, data in LEROBOT[what].items():
        if is_remote:
            fsspec.filesystem("memory").pipe_file(f"{url}/{name}", data)
        else:
            write(tmp_path / "in" / name, data)
    texts = [says(lambda: es.EpisodeStream(url)), says(lambda: es.EpisodeStream(url, on_bad="skip"))]
    texts += [str(CliRunner().invoke(cli, [command, url]).exception) for command in ("inspect", "plan")]
    for text in texts:
        assert text.startswith(f"{url}/meta/info.json: ")
        assert what in text


def test_folder_above_a_set_of_lerobot_s_says_which_to_give(tmp_path):
    for name in ("meta/info.json", "images/observation.images.top/episode_000000/frame_000000.png"):
        write(tmp_path / "in" / "lerobot" / "pusht" / name, b'{"codebase_version": "v2.0"}')
    for action in (lambda: es.EpisodeStream(str(tmp_path / "in")), lambda: es.pack(tmp_path / "in", tmp_path / "out")):
        text = says(action)
        assert "a LeRobot dataset (v2.0) with its pictures in folders" in text
        assert f"give {tmp_path / 'in'}/lerobot/pusht." in text


def test_tables_of_a_set_of_lerobot_s_without_its_meta_say_what_is_missing(tmp_path):
    write(tmp_path / "in" / "data" / "chunk-000" / "file-000.parquet", b"PAR1")
    for given in (tmp_path / "in", tmp_path / "in" / "data" / "chunk-000" / "file-000.parquet"):
        assert "meta/info.json" in says(lambda given=given: es.EpisodeStream(str(given)))


@pytest.mark.parametrize("what", ["a zarr", "rosbag", "TFDS"])
def test_remote_folder_of_another_format_is_named(tmp_path, what):
    url = f"memory://foreign/{what.split()[-1].strip('()')}"
    kind = next(name for name in FOLDERS if what in name)
    for name, data in FOLDERS[kind].items():
        fsspec.filesystem("memory").pipe_file(f"{url}/{name}", data)
    for action in (lambda: es.EpisodeStream(url), lambda: es.pack(url, tmp_path / "out")):
        assert what.split(" (")[0].removeprefix("a ") in says(action)


def zipped(name):
    def write(path):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, "x")

    return write


FILES = {
    "git lfs pull": LFS,
    "git annex get": b"/annex/objects/SHA256E-s1--00.hdf5\n",
    "dvc pull": b"outs:\n- md5: 0123\n  size: 3\n  path: e.hdf5\n",
    "a web page (HTML)": b"<!DOCTYPE html>\n<html><head><title>404</title>",
    "an XML text": b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>',
    "gunzip": gzip.compress(b"x"),
    "zstd -d": b"\x28\xb5\x2f\xfd" + b"x" * 20,
    "unzip": zipped("e.hdf5"),
    "a zarr in a zip": zipped("data/.zgroup"),
    "a numpy archive": zipped("action.npy"),
    "a Parquet file": b"PAR1" + b"x" * 20,
    "a numpy array": b"\x93NUMPY\x01\x00",
    "a pickle": pickle.dumps({"action": [1.0]}),
    "an mcap recording": b"\x89MCAP0\r\n",
    "a rosbag of ROS 1": b"#ROSBAG V2.0\n",
    "a MATLAB file before v7.3": b"MATLAB 5.0 MAT-file, Platform: GLNXA64",
    "a video (MP4)": b"\x00\x00\x00\x20ftypisom",
    "a JSON text": b'{"message": "not found"}',
    "an empty file": b"",
    "begins with zeros": bytes(4096),
}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    content(path) if callable(content) else path.write_bytes(content)
    return path


@pytest.mark.parametrize("what", FILES)
@pytest.mark.parametrize("name", ["episode_0.hdf5", "episode_0"])
def test_file_that_is_something_else_is_named_by_all_who_are_given_it(tmp_path, name, what):
    path = write(tmp_path / "in" / name, FILES[what])
    for text in everywhere(path, tmp_path / "out"):
        assert what in text, text


def test_remote_file_that_is_something_else_is_named():
    fsspec.filesystem("memory").pipe_file("memory://foreign/e.hdf5", LFS)
    assert "git lfs pull" in says(lambda: es.EpisodeStream("memory://foreign/e.hdf5"))


def test_one_file_that_is_something_else_is_left_out_by_name(tmp_path):
    write(tmp_path / "in" / "a.hdf5", LFS)
    aloha_raw(tmp_path / "in" / "b.hdf5", 5)
    assert "git lfs pull" in es.pack(tmp_path / "in", tmp_path / "out", skip_bad=True).faults[0]
    (reason,) = es.EpisodeStream(str(tmp_path / "in"), on_bad="skip").job.dataset.skipped.values()
    assert "git lfs pull" in reason


def test_pointers_in_place_of_parts_of_a_dataset_are_named(tmp_path):
    aloha_raw(tmp_path / "e.hdf5", 5)
    for part in ("dataset.json", "dataset-*.tables", "*.index", "*.tar"):
        es.pack(tmp_path / "e.hdf5", tmp_path / "out", overwrite=True)
        (found,) = (tmp_path / "out").glob(part)
        found.write_bytes(LFS)
        text = says(lambda: next(iter(es.EpisodeStream(str(tmp_path / "out"), cache="off"))))
        assert "git lfs pull" in text, part
        assert found.name in text
    tar = write(tmp_path / "lone" / "a.tar", LFS)
    assert "git lfs pull" in says(lambda: es.EpisodeStream(str(tar)))


@pytest.mark.parametrize("name", ["a.mat", "a.nc", "a.h5py", "a", "a.HDF5", "a.hdf"])
def test_hdf5_by_another_name_is_read_and_in_a_folder_the_pattern_that_is_advised_works(tmp_path, name):
    path = aloha_raw(tmp_path / "in" / "e.hdf5", 5).rename(tmp_path / "in" / name)
    assert es.EpisodeStream(str(path)).num_windows == 5
    assert es.pack(path, tmp_path / "one").num_episodes == 1
    given = tmp_path / "in"
    if not name.lower().endswith((".hdf5", ".hdf")):
        text = says(lambda: es.pack(given, tmp_path / "out"))
        given = text.split("by a pattern: '")[1].split("'")[0]
        assert given in says(lambda: es.EpisodeStream(str(tmp_path / "in")))
    assert es.pack(given, tmp_path / "out").num_episodes == 1
    assert es.EpisodeStream(str(given)).num_windows == 5


def test_hdf5_behind_a_block_of_the_writer_s_own_is_found_without_its_name(tmp_path):
    path = tmp_path / "v73.mat"
    with h5py.File(path, "w", userblock_size=512) as file:
        file["action"] = np.zeros((3, 9))
        file["action"].attrs["MATLAB_class"] = "double"
    assert "MATLAB v7.3" in says(lambda: es.EpisodeStream(str(path)))
    assert "MATLAB v7.3" in says(lambda: es.pack(path, tmp_path / "out"))


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["action/joint_position", "observation/robot_state/joint_positions"], "DROID's raw trajectory.h5"),
        (["traj_0/actions", "traj_0/env_states/x"], "ManiSkill"),
    ],
)
def test_hdf5_of_others_is_named_beside_what_was_looked_for(tmp_path, names, what):
    path = tmp_path / "trajectory.h5"
    with h5py.File(path, "w") as file:
        for name in names:
            file[name] = np.zeros((4, 7))
    for text in everywhere(path, tmp_path / "out"):
        assert what in text
        assert "Looked for: " in text


def _bind(path):
    # A socket's own name may have 107 bytes, which a folder of pytest's can be over: it is moved to its place.
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as bound:
        bound.bind(f"{folder}/s")
        Path(folder, "s").rename(path)


ODD = {
    "a named pipe (FIFO)": os.mkfifo,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "leads back to itself": lambda path: path.symlink_to(path.name),
    "nowhere, which is not there": lambda path: path.symlink_to("nowhere"),
    "a folder": lambda path: path.mkdir(),
    "a socket": _bind,
}


@pytest.mark.parametrize("what", [what for what in ODD if what != "a folder"])
@pytest.mark.parametrize("name", ["e.hdf5", "e", "e.tar", "dataset.json"])
def test_what_is_no_file_is_named_at_once_in_place_of_a_source(tmp_path, name, what):
    folder = tmp_path / "in"
    folder.mkdir()
    ODD[what](folder / name)
    for given in {folder / name} | ({folder} if name == "dataset.json" else set()):
        assert what in says(lambda given=given: es.EpisodeStream(str(given)))
    if name != "dataset.json":
        assert what in says(lambda: es.pack(folder / name, tmp_path / "out"))


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_file_is_named_at_once_in_place_of_parts_of_a_dataset(tmp_path, what):
    aloha_raw(tmp_path / "e.hdf5", 5)
    for part in ("dataset-*.tables", "*.index", "*.tar"):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        es.pack(tmp_path / "e.hdf5", tmp_path / "out")
        (found,) = (tmp_path / "out").glob(part)
        found.unlink()
        ODD[what](found)
        text = says(lambda: next(iter(es.EpisodeStream(str(tmp_path / "out"), cache="off"))))
        assert found.name in text
        assert what in text or (what == "a folder" and "no such file" in text)


@pytest.mark.parametrize("what", ODD)
def test_what_is_no_file_is_named_at_once_in_place_of_configurations_and_layouts(tmp_path, what):
    odd = tmp_path / "odd.yaml"
    ODD[what](odd)
    path = aloha_raw(tmp_path / "e.hdf5", 5)
    assert what in says(lambda: es.load_config(odd))
    from epistream.sharding.layouts.layout_file import read_layout_file
    from epistream.sharding.tar.step_mapping import read_step_mapping

    assert what in says(lambda: read_layout_file(odd))
    assert what in says(lambda: read_step_mapping(odd))
    assert what in says(lambda: es.EpisodeStream(str(path), layout=odd))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_file_that_may_not_be_read_is_named(tmp_path):
    path = aloha_raw(tmp_path / "e.hdf5", 5)
    path.chmod(0)
    for text in everywhere(path, tmp_path / "out"):
        assert "permission denied" in text


def test_provenance_is_json_that_says_nothing_of_options_nobody_used(tmp_path):
    es.pack(aloha_raw(tmp_path / "e.hdf5", 5), tmp_path / "out")
    assert "outside" not in json.dumps(json.loads((tmp_path / "out" / "dataset.json").read_text()))


def test_tuning_and_indexing_name_what_is_in_place_of_tars(tmp_path):
    es.pack(aloha_raw(tmp_path / "e.hdf5", 5), tmp_path / "out")
    (tar,) = (tmp_path / "out").glob("*.tar")
    tar.unlink()
    os.mkfifo(tar)
    for command in (["tune", "--batch-size", "2"], ["index", "--overwrite"]):
        done = CliRunner().invoke(cli, [command[0], str(tmp_path / "out"), *command[1:]])
        assert "a named pipe (FIFO)" in str(done.exception)
    write(tmp_path / "in" / "meta" / "info.json", b"{}")
    assert "a LeRobot dataset" in str(CliRunner().invoke(cli, ["index", str(tmp_path / "in")]).exception)
