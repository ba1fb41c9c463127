"""What errors about layouts and colours advise, and what becomes of taking the advice."""

import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hdf5_files import aloha_jpeg, aloha_raw, numbers, picture

import epistream as es
from epistream.commands import cli
from epistream.configs.config import load_config
from epistream.errors import EpistreamError
from epistream.sharding.layouts.layout_file import read_layout_file
from epistream.sharding.tar.step_mapping import read_step_mapping

DRAFT = "epistream layouts draft FILE -o layout.yaml"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "indexes"))
    monkeypatch.chdir(tmp_path)


def run(line, *more):
    return CliRunner().invoke(cli, [*shlex.split(line)[1:], *more])


def message_of(act):
    """What an action says that is refused, by exception or as the output of a command."""
    try:
        done = act()
    except EpistreamError as error:
        return str(error)
    assert isinstance(done.exception, EpistreamError), done.output
    return str(done.exception)


def unknown(name="a.h5", channels_first=False):
    frames = np.stack([picture(step) for step in range(5)])
    with h5py.File(name, "w") as file:
        file["cam"] = frames.transpose(0, 3, 1, 2) if channels_first else frames
        file["act"] = numbers(5, 2, 0)
        file.attrs["goal"], file.attrs["success"] = "lift it", "yes"


UNKNOWN = {
    "stream": lambda: es.EpisodeStream("a.h5"),
    "stream with a layout": lambda: es.EpisodeStream("a.h5", layout="robomimik"),
    "stream with one that it is not": lambda: es.EpisodeStream("a.h5", layout="robomimic"),
    "pack": lambda: run("epistream pack a.h5 out"),
    "pack with a layout": lambda: run("epistream pack a.h5 out --layout robomimik"),
    "inspect": lambda: run("epistream inspect a.h5"),
    "inspect with a layout": lambda: run("epistream inspect a.h5 --layout robomimic"),
    "plan": lambda: run("epistream plan a.h5"),
    "tune": lambda: run("epistream tune a.h5 --seconds 0.01"),
    "tune with a layout": lambda: run("epistream tune a.h5 --layout x"),
    "bench": lambda: run("epistream bench a.h5"),
    "bench with a layout": lambda: run("epistream bench a.h5 --layout x"),
    "cache warm": lambda: run("epistream cache warm a.h5 --directory cache"),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_layout_advises_a_draft_that_works(name):
    unknown()
    message = message_of(UNKNOWN[name])
    for words in (DRAFT, "--layout-file layout.yaml", "layout='layout.yaml'"):
        assert words in message
    assert run(DRAFT.replace("FILE", "a.h5")).exit_code == 0
    assert run("epistream pack a.h5 out --layout-file layout.yaml").exit_code == 0
    assert es.EpisodeStream("a.h5", layout="layout.yaml").num_windows == 5


def test_unknown_layout_advises_to_ask_for_the_marks():
    unknown()
    assert "'epistream layouts detect FILE' says which marks of each it lacks" in message_of(UNKNOWN["stream"])
    assert "robomimic" in run("epistream layouts detect a.h5").stdout


def test_inspect_advises_the_draft_by_the_name_of_the_file():
    unknown("b.h5")
    (command,) = re.findall(
        r"\((epistream layouts draft b\.h5 -o \S+) writes it\)", message_of(lambda: run("epistream inspect b.h5"))
    )
    assert run(command).exit_code == 0
    assert es.EpisodeStream("b.h5", layout="layout.yaml").num_windows == 5


def test_draft_that_exists_advises_another_name_or_overwrite():
    unknown()
    command = DRAFT.replace("FILE", "a.h5")
    run(command)
    message = message_of(lambda: run(command))
    assert "Give another name with -o, or --overwrite." in message
    assert run(command, "--overwrite").exit_code == 0
    assert run("epistream layouts draft a.h5 -o other.yaml").exit_code == 0


def own(text):
    Path("mine.yaml").write_text(f"name: mine\n{text}")
    return "mine.yaml"


# Of a layout file: what it says, what the error advises, and the text as it is then.
CORRECTIONS = {
    "optional": (
        "features: [{path: act, name: action}, {path: 'q*', name: 'observation.*'}]",
        "say 'optional: true' beside what may be missing",
        "features: [{path: act, name: action}, {path: 'q*', name: 'observation.*', optional: true}]",
    ),
    "tasks_optional": (
        "tasks: [none]\nfeatures: [{path: act, name: action}]",
        "say 'tasks_optional: true' there",
        "tasks: [none]\ntasks_optional: true\nfeatures: [{path: act, name: action}]",
    ),
    "attribute": (
        "tasks: [goal]\nfeatures: [{path: act, name: action}]",
        "found @goal, @success, act, cam. Correct it in the layout file",
        "tasks: ['@goal']\nfeatures: [{path: act, name: action}]",
    ),
    "where": (
        "where: {'@success': true}\nfeatures: [{path: act, name: action}]",
        "/@success: \"yes\", which 'where' of the layout file compares with true. Write there what is wanted",
        "where: {'@success': 'yes'}\nfeatures: [{path: act, name: action}]",
    ),
    "where nothing": (
        "where: {'@succes': 'yes'}\nfeatures: [{path: act, name: action}]",
        "found @goal, @success. Correct the name",
        "where: {'@success': 'yes'}\nfeatures: [{path: act, name: action}]",
    ),
    "where none": (
        "where: {'@success': 'no'}\nfeatures: [{path: act, name: action}]",
        "Correct 'where' in the layout file",
        "where: {'@success': ['no', 'yes']}\nfeatures: [{path: act, name: action}]",
    ),
    "path": (
        "features: [{path: actions, name: action}]",
        "Not there: /actions. Correct its paths",
        "features: [{path: act, name: action}]",
    ),
    "transpose": (
        "features: [{path: act, name: action}, {path: cam, camera: top}]",
        "In a layout file, 'transpose: chw' reads them",
        "features: [{path: act, name: action}, {path: cam, camera: top, transpose: chw}]",
    ),
    "transpose wrong": (
        "features: [{path: act, name: action}, {path: cam, camera: top, transpose: whc}]",
        "Correct 'transpose' in the layout file",
        "features: [{path: act, name: action}, {path: cam, camera: top, transpose: chw}]",
    ),
    "leave out": (
        "features: [{path: act, name: action}, {path: odd, name: observation.odd}]",
        "wanted a row for each step. Leave it out",
        "features: [{path: act, name: action}]",
    ),
}


@pytest.mark.parametrize("name", CORRECTIONS)
def test_error_of_a_layout_file_advises_a_correction_that_works(name):
    wrong, advice, right = CORRECTIONS[name]
    if "transpose" in name:
        with h5py.File("a.h5", "w") as file:
            file["cam"], file["act"] = np.zeros((5, 3, 4 if "wrong" in name else 24, 32), np.uint8), numbers(5, 2, 0)
    else:
        unknown()
        with h5py.File("a.h5", "a") as file:
            file["odd"] = ["x"] * 5 if name == "leave out" else np.zeros(5)
            if name in ("attribute", "where nothing"):
                del file["odd"]
    assert advice in message_of(lambda: es.EpisodeStream("a.h5", layout=own(wrong)))
    assert es.EpisodeStream("a.h5", layout=own(right)).num_windows == 5


@pytest.mark.parametrize(
    ("read", "good"),
    [
        (load_config, "stream: {batch_size: 4}"),
        (read_layout_file, "name: mine\nfeatures: [{path: a, name: action}]"),
        (read_step_mapping, "key: 'ep{episode}_{step}'"),
    ],
    ids=["configuration", "layout", "steps"],
)
def test_yaml_that_is_none_advises_what_can_be_done(tmp_path, read, good):
    path = tmp_path / "a.yaml"
    path.write_bytes(f"# é\n{good}".encode("latin-1"))
    assert "Save it as UTF-8." in message_of(lambda: read(path))
    path.write_text(f"# é\n{good}", encoding="utf-8")
    read(path)
    path.write_text(f"{good}\na: [")
    assert "Correct it." in message_of(lambda: read(path))
    path.write_text(good)
    read(path)


def test_order_against_a_layout_advises_the_right_one_and_how_to_insist(tmp_path):
    aloha_jpeg(tmp_path / "a.hdf5", 3)
    message = message_of(lambda: run("epistream pack a.hdf5 out --color-order rgb"))
    assert "Leave it out or give --color-order bgr" in message
    assert "add --force-color-order" in message
    for number, advised in enumerate(("", "--color-order bgr", "--color-order rgb --force-color-order")):
        assert run(f"epistream pack a.hdf5 out{number} {advised}").exit_code == 0


def test_files_of_two_orders_advise_one_for_all(tmp_path):
    aloha_jpeg(tmp_path / "in" / "a.hdf5", 3)
    aloha_raw(tmp_path / "in" / "b.hdf5", 3)
    message = message_of(lambda: run("epistream pack in out"))
    assert "Give --color-order bgr" in message
    assert "pack those apart, or all of them with --codec png" in message
    assert run("epistream pack in one --color-order bgr").exit_code == 0
    assert run("epistream pack in png --codec png").exit_code == 0
    assert run("epistream pack in/a.hdf5 a").exit_code == run("epistream pack in/b.hdf5 b").exit_code == 0
