"""`inspect --image`: the frames and the curves of any episode, in shards and in HDF5 files, near and far."""

import fsspec
import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hdf5_files import aloha_jpeg, aloha_raw, picture, robomimic
from PIL import Image

import epistream as es
from epistream.commands import cli
from epistream.commands.episode_views import episode_picture
from epistream.errors import OptionError
from epistream.sharding.check.curves import MOST_DIMS, Span, draw_curves
from epistream.sharding.dataset import open_dataset

SEED_OF_TOP = len("top")  # as `aloha_raw` makes its frames
LAYOUT = """
name: mine
episodes: runs/*
fps: 10
features:
  - {path: cam/rgb, camera: front}
  - {path: act, name: action}
  - {path: state, name: observation.state}
"""


def contains(sheet, part):
    height, width = part.shape[:2]
    corners = np.argwhere((sheet[: -height + 1, : -width + 1] == part[0, 0]).all(-1))
    return any((sheet[y : y + height, x : x + width] == part).all() for y, x in corners)


def enlarged(frame):
    factor = 240 // frame.shape[1]
    return frame.repeat(factor, 0).repeat(factor, 1)


def colours(image):
    return {tuple(colour) for colour in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}


@pytest.fixture(params=["hdf5", "shards", "remote hdf5", "remote shards"])
def source(request, tmp_path):
    path = aloha_raw(tmp_path / "in" / "a.hdf5", 6)
    folder = tmp_path / "in"
    if "shards" in request.param:
        es.pack(path, tmp_path / "out", codec="png")
        folder = tmp_path / "out"
    if "remote" not in request.param:
        return folder
    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe_file(f"/{tmp_path.name}/{file.name}", file.read_bytes())
    return f"memory://{tmp_path.name}/" + ("a.hdf5" if "hdf5" in request.param else "")


def test_picture_shows_frames_pixel_by_pixel_and_curves_wherever_the_episode_is(source):
    sheet = np.asarray(episode_picture(open_dataset(source), 0, num_columns=2))
    for step in (0, 5):
        assert contains(sheet, enlarged(picture(step, SEED_OF_TOP)))
    assert not contains(sheet, enlarged(picture(2, SEED_OF_TOP)))
    without = np.asarray(episode_picture(open_dataset(source), 0, 2, ["observation.images.*"]))
    assert sheet.shape[0] > without.shape[0] + 300  # state and action


def test_every_episode_of_every_example_has_a_picture(example_data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for folder in [*sorted(example_data.iterdir()), example_data / "lerobot" / "aloha"]:
        if folder.is_dir() and folder.name != "lerobot":
            dataset = open_dataset(folder)
            sheet = episode_picture(dataset, dataset.num_episodes - 1, 3)
            cameras = sum(feature.kind == "frames" for feature in dataset.features.values())
            assert sheet.height > 50 * cameras


def test_picture_of_a_file_in_a_layout_of_ones_own(tmp_path):
    frames = np.stack([picture(step, 3) for step in range(4)])
    with h5py.File(tmp_path / "x.hdf5", "w") as file:
        file["runs/0/cam/rgb"] = frames
        file["runs/0/act"] = np.zeros((4, 2), np.float32)
        file["runs/0/state"] = np.ones((4, 3), np.float32)
    (tmp_path / "mine.yaml").write_text(LAYOUT)
    line = ["inspect", tmp_path / "x.hdf5", "--layout-file", tmp_path / "mine.yaml", "--image", tmp_path / "out.png"]
    done = CliRunner().invoke(cli, [*map(str, line), "--columns", "2"])
    assert done.exit_code == 0, done.output
    with Image.open(tmp_path / "out.png") as image:
        assert f"{image.width}x{image.height} pixels (width x height)" in done.output
        assert contains(np.asarray(image), enlarged(frames[3]))


def test_episodes_of_one_step_and_without_cameras_have_pictures_too(tmp_path):
    aloha_jpeg(tmp_path / "one.hdf5", 1, cameras=("top",))
    assert episode_picture(open_dataset(tmp_path / "one.hdf5"), 0).height > 400
    robomimic(tmp_path / "blind.hdf5", {"demo_0": 3}, cameras=())
    assert episode_picture(open_dataset(tmp_path / "blind.hdf5"), 0).height > 200


def test_features_choose_what_is_shown_and_unlike_sources_are_looked_at_by_what_they_share(tmp_path):
    one, other = aloha_jpeg(tmp_path / "a.hdf5", 3), aloha_jpeg(tmp_path / "b.hdf5", 3, cameras=("wrist",))
    line = ["inspect", str(one), str(other), "--image", str(tmp_path / "out.png"), "--episode", "1"]
    refused = CliRunner().invoke(cli, line)
    assert "lacks observation.images.angle, observation.images.top" in str(refused.exception)
    done = CliRunner().invoke(cli, [*line, "--feature", "action*", "--feature", "observation.state"])
    assert done.exit_code == 0, done.output
    listed = CliRunner().invoke(cli, ["inspect", str(one), "--feature", "*.top"])
    assert "observation.images.top" in listed.output
    assert "angle" not in listed.output
    unknown = CliRunner().invoke(cli, ["inspect", str(one), "--feature", "wrist*"])
    assert isinstance(unknown.exception, OptionError)
    assert "observation.images.top" in str(unknown.exception)


def test_columns_of_curves_stand_where_the_values_are():
    values = np.array([0.0, 0.0, 1.0, 1.0, 0.0])[:, None]
    panel = np.asarray(draw_curves("step", values, Span(60, 300, (0, 4))).convert("RGB")).astype(int)
    blue = (panel[..., 2] - panel[..., 0] > 60) & (panel[..., 2] > 120)
    plot = blue[24 : 24 + 170, 60:]
    heights = [int(np.flatnonzero(plot[:, x]).mean()) for x in (4, 77, 150, 223)]  # of steps 0 to 3
    assert heights[0] > 150
    assert heights[1] > 140
    assert heights[2] < 20
    assert heights[3] < 30


def test_gaps_are_gaps_and_told():
    values = np.ones((9, 1))
    values[3:6] = np.nan
    panel = np.asarray(draw_curves("gap", values, Span(60, 308, (0, 8))).convert("RGB")).astype(int)
    blue = (panel[..., 2] - panel[..., 0] > 60)[24 : 24 + 170, 60:].any(axis=0)
    assert blue[10:70].all()
    assert not blue[90:210].any()
    assert blue[235:295].all()
    told = draw_curves("gap", values, Span(60, 308, (0, 8)))
    plain = draw_curves("gap", np.ones((9, 1)), Span(60, 308, (0, 8)))
    assert np.asarray(told)[:16].tolist() != np.asarray(plain)[:16].tolist()


@pytest.mark.parametrize("values", [np.full((4, 3), np.nan), np.full((4, 3), np.inf), np.zeros((1, 2)), np.zeros(5)])
def test_values_without_a_range_are_drawn(values):
    assert draw_curves("odd", values, Span(60, 300, (0,))).height > 170


def test_as_many_dimensions_as_there_are_colours_are_drawn_each_in_its_own():
    rows = np.tile(np.arange(MOST_DIMS + 4.0), (5, 1))
    panel = draw_curves("many", rows, Span(60, 800, (0, 4)))
    legend = colours(panel.crop((60, panel.height - 40, 860, panel.height)))
    assert len({colour for colour in legend if max(colour) - min(colour) > 20 and max(colour) < 230}) >= MOST_DIMS - 2
    assert panel.width == 860
