"""What is shown of videos: how long their groups are, and single frames, which need PyAV."""

import json
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from video.clips import number_of
from video.episodes import counted_folder, first_number

from epistream.commands import cli
from epistream.errors import OptionError
from epistream.sharding.check.contact_sheet import contact_sheet
from epistream.sharding.check.inspect import EpisodeFrames, describe
from epistream.sharding.dataset import open_dataset
from epistream.sharding.pack.pack import pack

TOP = "observation.images.top"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    pack(counted_folder(folder / "in", (20, 7)), folder / "out", codec="h264", gop=8)
    return folder / "out"


def shown(*words):
    done = CliRunner().invoke(cli, [str(word) for word in words], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    return done.output


def test_tables_and_json_say_how_long_groups_are(folder):
    table = " ".join(shown("inspect", folder).split())
    assert "observation.images.top 64x64x3 uint8 h264, groups of 8" in table
    features = {feature["name"]: feature for feature in json.loads(shown("inspect", folder, "--json"))["features"]}
    assert (features[TOP]["codec"], features[TOP]["group_steps"]) == ("h264", 8)
    assert "group_steps" not in features["action"]


def test_a_picture_of_an_episode_has_its_frames(folder):
    dataset = open_dataset(folder)
    frames = EpisodeFrames(dataset, 1)
    asked = []

    def read(feature, steps):
        asked.append((feature.name, list(steps)))
        rows = [frames.read(feature, step) if feature.kind == "frames" else np.zeros(feature.shape) for step in steps]
        return np.stack(rows)

    sheet = contact_sheet(dataset, 1, read, 3)
    assert asked[0] == ("observation.images.angle", [0, 3, 6])
    assert sheet.width > 300
    assert [number_of(frames.read(dataset.features[TOP], step)) for step in (0, 6)] == [
        first_number(1, TOP),
        first_number(1, TOP) + 6,
    ]


def test_without_pyav_all_but_pictures_is_shown(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    assert describe(open_dataset(folder))["num_steps"] == 27
    assert "groups of 8" in shown("inspect", folder)
    dataset = open_dataset(folder)
    with pytest.raises(OptionError, match=r"pip install 'epistream\[video\]'"):
        EpisodeFrames(dataset, 0).read(dataset.features[TOP], 0)
