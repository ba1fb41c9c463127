"""Inspect: the numbers are those of the files, and the picture shows the frames upright at the labelled steps."""

import dataclasses
import json
import re

import every_layout
import numpy as np
import pytest
from click.testing import CliRunner
from handmade import HEIGHT, WIDTH, encoded, members, npy, picture, publish, write_dataset, write_tar
from PIL import Image

from epistream.commands import cli
from epistream.commands.episode_views import episode_picture
from epistream.errors import FormatError, OptionError, SourceError
from epistream.sharding.check.inspect import EpisodeFrames, describe
from epistream.sharding.check.verify import verify
from epistream.sharding.dataset import open_dataset

CAMERA = "observation.images.top"


def run(*arguments):
    result = CliRunner().invoke(cli, ["inspect", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.output


@pytest.fixture
def folder(tmp_path):
    metas = {
        0: {"tasks": ["lift"], "split": "train"},
        1: {"tasks": ["lift", "[red]drop\n"], "valid_ranges": [[0, 1]], "split": "train"},
        2: {"split": "val"},
    }
    return write_dataset(tmp_path / "ds", lengths=((5, 3), (4,)), codec="raw", metas=metas)


def with_meta(folder, feature, frames):
    """A dataset of one episode whose meta.json describes its camera; frames as (name, bytes)."""
    from epistream.sharding.tar.index_tar import index_tar

    folder.mkdir()
    length = len(frames)
    described = {"name": CAMERA, "kind": "frames", "dtype": "uint8", "shape": [HEIGHT, WIDTH, 3], **feature}
    meta = {"length": length, "features": [described], "tasks": ["a task " * 100]}
    pairs = [("ep.meta.json", json.dumps(meta).encode())]
    path = write_tar(folder / "a.tar", pairs + frames)
    index = index_tar(path)
    data = index.to_bytes()
    path.with_suffix(".index").write_bytes(data)
    publish(folder, {path.name: (index, data)})
    return open_dataset(folder)


def test_describe_sums_up_what_the_manifest_says(folder):
    facts = describe(open_dataset(folder))
    assert (facts["num_shards"], facts["num_episodes"], facts["num_steps"]) == (2, 3, 12)
    assert facts["num_valid_steps"] == 10
    assert facts["episode_length"] == {"min": 3, "median": 4.0, "max": 5}
    assert facts["num_bytes"] == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert facts["num_index_bytes"] == sum(path.stat().st_size for path in folder.glob("*.index"))
    assert [(s["name"], s["num_shards"], s["num_episodes"], s["num_steps"]) for s in facts["splits"]] == [
        ("train", 1, 2, 8),
        ("val", 1, 1, 4),
    ]
    assert facts["tasks"] == [{"task": "lift", "num_episodes": 2}, {"task": "[red]drop\n", "num_episodes": 1}]
    assert [feature["name"] for feature in facts["features"]] == ["action", CAMERA]


def test_inspect_json_is_json_and_says_the_same(folder):
    assert json.loads(run(folder, "--json")) == json.loads(json.dumps(describe(open_dataset(folder))))
    episode = json.loads(run(folder, "--episode", 1, "--json"))
    assert (episode["key"], episode["length"], episode["tasks"][0]) == ("ep-000000001", 3, "lift")


def test_inspect_tables_show_features_splits_and_tasks_without_markup_from_outside(folder):
    text = run(folder)
    assert f"{WIDTH}x{HEIGHT}x3" in text
    assert "3 to 5 (median 4) steps" in text
    assert "2 not valid as anchors" in text
    assert "[red]drop" in text
    for word in ("train", "val", "action", "float32", "fingerprint"):
        assert word in text
    assert "ep-000000002" in run(folder, "--episode", 2)


def test_inspect_shows_statistics_with_gaps_and_many_dimensions(tmp_path):
    from epistream.sharding.manifest.manifest_file import read_manifest
    from epistream.sharding.manifest.manifest_writing import write_manifest

    folder = write_dataset(tmp_path / "ds")
    manifest = read_manifest(str(folder))
    values = {"count": 12, "mean": [1.5, None, 3.0], "std": [0] * 3, "min": [-1] * 3, "max": [2] * 3}
    write_manifest(dataclasses.replace(manifest, statistics={"action": values}, statistics_split="all"), str(folder))
    text = run(folder)
    assert "action, 12 steps" in text
    assert "1.5" in text
    assert "q01" not in text


@pytest.fixture
def terminal(monkeypatch):
    """Runs the command in a terminal of so many columns."""

    def look(columns, *arguments):
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", str(columns))
        return re.sub(r"\x1b\[[0-9;]*m", "", run(*arguments))

    return look


def test_inspect_in_80_columns_folds_no_feature_and_cuts_no_number(folder, terminal):
    from epistream.sharding.manifest.manifest_file import read_manifest
    from epistream.sharding.manifest.manifest_writing import write_manifest

    columns = ("mean", "std", "min", "q01", "q99", "max")
    values = {"count": 12} | {name: [-0.000123 - number] * 3 for number, name in enumerate(columns)}
    values["min"] = [-1.25e-17] * 3
    manifest = read_manifest(str(folder))
    write_manifest(dataclasses.replace(manifest, statistics={"action": values}, statistics_split="train"), str(folder))
    text = terminal(80, folder)
    assert str(folder) in "".join(text.split()), "a long path is folded, not cut"
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if line.split()[:1] == [CAMERA])
    assert row.split()[1:] == [f"{WIDTH}x{HEIGHT}x3", "uint8", "raw"]
    numbers = next(line for line in text.splitlines() if "e-17" in line)
    assert numbers.split() == ["0", "-0.000123", "-1", "-1.25e-17", "-3", "-4", "-5"]


def test_inspect_shows_paths_in_the_source_where_they_fit(tmp_path, terminal):
    path = every_layout.write("libero", tmp_path)
    assert "obs/agentview_rgb" in terminal(120, path)
    text = terminal(80, path)
    assert "obs/agentview_rgb" not in text
    assert "their paths in the source: --json" in text
    assert "raw, upright after 180°" in text


def test_contact_sheet_shows_first_and_last_step_pixel_by_pixel(folder):
    sheet = np.asarray(episode_picture(open_dataset(folder), 0, num_columns=2))
    factor = 240 // WIDTH  # small pictures are enlarged by whole pixels
    for step in (0, 4):
        wanted = picture(0, step).repeat(factor, 0).repeat(factor, 1)
        assert contains(sheet, wanted)
    assert not contains(sheet, picture(0, 2).repeat(factor, 0).repeat(factor, 1))


def contains(sheet, part):
    height, width = part.shape[:2]
    corners = np.argwhere((sheet[: -height + 1, : -width + 1] == part[0, 0]).all(-1))
    return any((sheet[y : y + height, x : x + width] == part).all() for y, x in corners)


def test_contact_sheet_turns_upside_down_cameras_upright(tmp_path):
    frames = [("ep.observation.images.top.npy", npy(np.stack([picture(0, 3)[::-1, ::-1]])))]
    dataset = with_meta(tmp_path / "ds", {"codec": "raw", "rotate": 180}, frames)
    factor = 240 // WIDTH
    assert contains(np.asarray(episode_picture(dataset, 0)), picture(0, 3).repeat(factor, 0).repeat(factor, 1))


def test_frames_of_a_bgr_camera_are_the_writers_array(tmp_path):
    swapped = encoded(picture(0, 3)[..., ::-1], "png")
    dataset = with_meta(tmp_path / "p", {"codec": "png"}, [(f"ep.{CAMERA}.000000.png", swapped)])
    frame = EpisodeFrames(dataset, 0).read(dataset.features[CAMERA], 0)
    np.testing.assert_array_equal(frame, picture(0, 3)[..., ::-1])
    red = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    red[..., 0] = 200
    jpeg = encoded(red, "jpeg")
    feature = {"codec": "jpeg", "jpeg_channels": "bgr"}
    dataset = with_meta(tmp_path / "j", feature, [(f"ep.{CAMERA}.000000.jpg", jpeg)])
    frame = EpisodeFrames(dataset, 0).read(dataset.features[CAMERA], 0)
    assert frame[..., 2].min() > 190
    assert frame[..., 0].max() < 10


def test_contact_sheet_shows_depth_stretched_to_grey(tmp_path):
    depth = np.arange(HEIGHT * WIDTH, dtype=np.uint16).reshape(HEIGHT, WIDTH) + 500
    feature = {"codec": "png", "dtype": "uint16", "shape": [HEIGHT, WIDTH, 1]}
    dataset = with_meta(tmp_path / "ds", feature, [(f"ep.{CAMERA}.000000.png", encoded(depth, "png"))])
    sheet = np.asarray(episode_picture(dataset, 0))
    grey = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    low, high = np.percentile(grey, [1, 99])
    wanted = (np.clip((grey - low) / (high - low), 0, 1) * 255).astype(np.uint8)
    factor = 240 // WIDTH
    assert contains(sheet, np.repeat(wanted[..., None], 3, -1).repeat(factor, 0).repeat(factor, 1))


def test_inspect_writes_a_picture_that_can_be_opened(folder, tmp_path):
    out = tmp_path / "sheet.png"
    text = run(folder, "--episode", 1, "--image", out, "--columns", 3)
    with Image.open(out) as image:
        assert f"{image.width}x{image.height} pixels (width x height)" in text
    failed = CliRunner().invoke(cli, ["inspect", str(folder), "--image", str(tmp_path / "sheet.xyz")])
    assert isinstance(failed.exception, OptionError)
    failed = CliRunner().invoke(cli, ["inspect", str(folder), "--image", str(tmp_path / "no" / "sheet.png")])
    assert isinstance(failed.exception, SourceError)


def test_inspect_of_what_is_not_there_is_refused(folder, tmp_path):
    dataset = open_dataset(folder)
    with pytest.raises(OptionError, match="episode 3, wanted 0 to 2"):
        episode_picture(dataset, 3)
    with pytest.raises(OptionError, match="0 columns"):
        episode_picture(dataset, 0, 0)
    index = folder / "shard-000000.index"
    index.write_bytes(index.read_bytes()[:-1])
    with pytest.raises(FormatError, match="the manifest says"):
        episode_picture(dataset, 0)
    index.unlink()
    with pytest.raises(SourceError, match=r"shard-000000\.index: no such file"):
        episode_picture(dataset, 0)
    (folder / "shard-000001.tar").unlink()
    with pytest.raises(SourceError, match=r"shard-000001\.tar: No such file"):
        episode_picture(dataset, 2)
    arrays = tmp_path / "arrays"
    arrays.mkdir()
    write_tar(arrays / "a.tar", members(0, 3)[:1])
    CliRunner().invoke(cli, ["index", str(arrays)])
    with pytest.raises(OptionError, match=r"features: \['top'\] not in this dataset"):
        episode_picture(open_dataset(arrays), 0, wanted=["top"])


def test_frames_come_from_a_server_that_knows_no_ranges(folder, monkeypatch):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in folder.iterdir():
        memory.pipe_file(f"/noranges/{path.name}", path.read_bytes())
    dataset = open_dataset("memory://noranges")
    whole = type(memory).cat_file
    monkeypatch.setattr(type(memory), "cat_file", lambda self, path, **ranges: whole(self, path))
    frame = EpisodeFrames(dataset, 1).read(dataset.features[CAMERA], 2)
    np.testing.assert_array_equal(frame, picture(1, 2))


def test_verify_refuses_episodes_that_are_still_in_hdf5_with_the_cure(example_data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    dataset = open_dataset(example_data / "aloha")
    assert describe(dataset)["num_episodes"] == 2
    with pytest.raises(
        OptionError, match=r"an HDF5 file, wanted tars or LeRobot data sets\. Pack it first: epistream pack"
    ):
        verify(dataset)
