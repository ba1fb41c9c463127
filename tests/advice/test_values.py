"""What messages about values and statistics advise, taken to the word."""

import re
import shlex
import shutil

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hdf5_files import robomimic

import epistream as es
from epistream.commands import cli
from epistream.errors import FormatError, OptionError
from epistream.loader.reading import precision

STAMP = "observation.stamp"


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "WARNED", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def recorded(tmp_path):
    path = robomimic(tmp_path / "d.hdf5", {"demo_0": 30}, cameras=())
    with h5py.File(path, "r+") as file:
        file["data/demo_0/obs/stamp"] = 1.7e9 + 0.02 * np.arange(30)
    return path


def said_dtypes(message):
    """The arguments that a message names, as Python reads them."""
    return [eval(text, {}) for text in re.findall(r"dtypes=(\{[^}]*\})", message)]


def test_dtypes_that_the_warning_names_keep_the_steps_apart_or_say_nothing(recorded, caplog, monkeypatch):
    next(iter(es.EpisodeStream(recorded, batch_size=30)))
    (record,) = caplog.records
    kept, enough = said_dtypes(record.getMessage())
    for dtypes, num_values in ((kept, 30), (enough, 1)):
        caplog.clear()
        monkeypatch.setattr(precision, "WARNED", set())
        batch = next(iter(es.EpisodeStream(recorded, batch_size=30, dtypes=dtypes)))
        assert len(torch.unique(batch[STAMP])) == num_values
        assert not caplog.records


def test_normalizer_that_the_error_names_is_taken(recorded):
    statistics, modes = es.open_dataset(recorded).statistics, {STAMP: "mean_std"}
    with pytest.raises(OptionError) as raised:
        es.EpisodeStream(recorded, normalize=es.Normalizer(statistics, modes), dtypes={STAMP: "float64"})
    (dtypes,) = said_dtypes(str(raised.value))
    own = es.Normalizer(statistics, modes, dtypes=dtypes)
    batch = next(iter(es.EpisodeStream(recorded, batch_size=30, normalize=own, dtypes={STAMP: "float64"})))
    assert len(torch.unique(batch[STAMP])) == 30


def test_command_that_the_warning_of_estimates_names_makes_the_sketch(recorded, tmp_path, caplog):
    for name in ("a", "b"):
        es.pack(recorded, tmp_path / name)
    for path in tmp_path.glob("?/statistics-*"):
        path.unlink()
    parts = [tmp_path / "a", tmp_path / "b"]
    dict(es.open_dataset(parts).statistics)
    commands = re.findall(r"'epistream ([^']*)'", caplog.records[-1].getMessage())
    assert len(commands) == 2
    for command in commands:
        done = CliRunner().invoke(cli, shlex.split(command))
        assert done.exit_code == 0, done.output
    caplog.clear()
    joined = es.open_dataset(parts)
    assert joined.statistics["action"]["count"] == 60
    assert not joined.statistics.estimated
    assert not caplog.records


@pytest.mark.parametrize("step", ["remove", "index", "pack"])
def test_steps_that_the_error_of_a_bad_sketch_names_all_work(recorded, tmp_path, step):
    es.pack(recorded, tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (path,) = (tmp_path / "b").glob("statistics-*")
    path.write_bytes(b"torn")
    parts = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(
        FormatError, match="Remove it, or make it anew with 'epistream index URL --overwrite'"
    ) as raised:
        dict(es.open_dataset(parts).statistics)
    assert str(path) in str(raised.value)
    if step == "remove":
        path.unlink()
    elif step == "index":
        assert CliRunner().invoke(cli, ["index", str(tmp_path / "b"), "--overwrite"]).exit_code == 0
    else:
        es.pack(recorded, tmp_path / "b", overwrite=True)
    joined = es.open_dataset(parts)
    assert joined.statistics["action"]["count"] == 60
    assert bool(joined.statistics.estimated) == (step == "remove")


def test_name_that_the_error_of_dtypes_suggests_is_taken(recorded):
    with pytest.raises(OptionError) as raised:
        es.EpisodeStream(recorded, dtypes={"observation.stamq": "float64"})
    name = re.search(r"Did you mean '([^']+)'", str(raised.value))[1]
    assert next(iter(es.EpisodeStream(recorded, dtypes={name: "float64"})))[STAMP].dtype == torch.float64
    with pytest.raises(OptionError, match=r"Leave '.*' out\."):
        es.EpisodeStream(recorded, dtypes={STAMP: "int8"})
