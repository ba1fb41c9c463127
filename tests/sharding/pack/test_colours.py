"""`color_order` against what layouts know: an order that would swap red and blue is an error, which names the right."""

import h5py
import numpy as np
import pytest
from hdf5_files import aloha_jpeg, aloha_raw, jpeg, numbers, picture

import epistream as es
from epistream.errors import PackError
from epistream.sharding.layouts.layout_file import read_layout_file
from epistream.sharding.pack.pack import pack


def test_order_against_the_layout_is_an_error_that_names_the_right_one(tmp_path):
    path = aloha_jpeg(tmp_path / "a.hdf5", 3)
    with pytest.raises(PackError) as caught:
        pack(path, tmp_path / "out", color_order="rgb")
    assert "/observations/images/angle: the layout says that its JPEG is bgr, --color-order is rgb" in str(caught.value)
    assert pack(path, tmp_path / "right", color_order="bgr").features["observation.images.top"].jpeg_channels == "bgr"
    forced = pack(path, tmp_path / "forced", color_order="rgb", force_color_order=True)
    assert forced.features["observation.images.top"].jpeg_channels == "rgb"


def test_order_is_taken_where_the_layout_knows_none(tmp_path):
    """Arrays are encoded in any order that is wished; a layout file that is silent says nothing of its JPEG rows."""
    raw = pack(aloha_raw(tmp_path / "a.hdf5", 3), tmp_path / "raw", color_order="bgr")
    assert raw.features["observation.images.top"].jpeg_channels == "bgr"
    (tmp_path / "mine.yaml").write_text("name: mine\nfeatures: [{path: rgb, camera: top}, {path: a, name: action}]\n")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        rows = [jpeg(picture(step)) for step in range(3)]
        file["rgb"], file["a"] = np.array(rows, f"S{max(map(len, rows))}"), numbers(3, 2, 0)
    layout = read_layout_file(tmp_path / "mine.yaml")
    done = pack(tmp_path / "b.h5", tmp_path / "own", layout=layout, color_order="bgr")
    assert done.features["observation.images.top"].jpeg_channels == "bgr"
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nfeatures: [{path: rgb, camera: top, jpeg_channels: rgb}, {path: a, name: action}]\n"
    )
    layout = read_layout_file(tmp_path / "mine.yaml")
    with pytest.raises(PackError, match="the layout says that its JPEG is rgb, --color-order is bgr"):
        pack(tmp_path / "b.h5", tmp_path / "said", layout=layout, color_order="bgr")


def test_files_of_two_orders_are_told_apart_and_go_together_without_loss(tmp_path):
    folder = tmp_path / "in"
    aloha_jpeg(folder / "a.hdf5", 3, cameras=("top",))
    # Of the same features; its arrays are encoded as RGB.
    with h5py.File(folder / "b.hdf5", "w") as file:
        file["observations/image_top"] = np.stack([picture(step) for step in range(3)])
        file["actions"], file["observations/qpos"] = numbers(3, 14, 1), numbers(3, 14, 0)
        file["observations/qvel"] = numbers(3, 14, 2)
    options = {"rename": [("image_top", "top")], "fps": 50}
    with pytest.raises(PackError) as caught:
        pack(folder, tmp_path / "out", **options)
    assert "Give --color-order bgr, by which arrays are encoded for it too." in str(caught.value)
    for name, advised in (("bgr", {"color_order": "bgr"}), ("png", {"codec": "png"})):
        assert pack(folder, tmp_path / name, **options, **advised).num_episodes == 2
        batch = next(iter(es.EpisodeStream(tmp_path / name, shuffle=False, batch_size=6)))
        pictures = batch["observation.images.top"][:, 0].numpy().astype(int)
        for step in range(3):
            assert np.abs(pictures[step] - picture(step, 3)).mean() < 12
            assert np.abs(pictures[3 + step] - picture(step)).mean() < 12
    with pytest.raises(PackError, match="the layout says that its JPEG is bgr"):
        pack(folder, tmp_path / "rgb", **options, color_order="rgb")
