"""Sizes of pictures are width x height wherever a text has them as AxB, and the text says so."""

import ast
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hdf5_files import aloha_jpeg, aloha_raw, jpeg, picture

import epistream as es
from epistream.commands import cli
from epistream.configs.config import load_config
from epistream.errors import EpistreamError
from epistream.sharding.dataset import open_dataset

ROOT = Path(__file__).resolve().parent.parent
HIGH, WIDE = 24, 40
# Two numbers with an x between them, or the names of two sides.
SIZE = re.compile(r"\b(\d{2,})x(\d{2,})(?:x\d)?\b")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of pictures 32 wide and 24 high."""
    folder = tmp_path_factory.mktemp("sizes")
    return [aloha_jpeg(folder / "a.hdf5", 3, cameras=("top",)), aloha_raw(folder / "b.hdf5", 3, 1, cameras=("top",))]


def error_of(action):
    with pytest.raises(EpistreamError) as caught:
        action()
    return str(caught.value)


def wide(path):
    """The same episode with pictures of another size, one frame of which is of yet another."""
    with h5py.File(aloha_jpeg(path, 3, cameras=("top",)), "r+") as file:
        rows = file["observations/images/top"]
        data = jpeg(picture(1, height=HIGH, width=WIDE))
        rows[1] = np.frombuffer(data.ljust(rows.shape[1], b"\0")[: rows.shape[1]], np.uint8)
    return path


def texts_with_sizes(files, folder):
    """What is said, by who says it."""
    run = CliRunner().invoke
    packed, small = folder / "packed", folder / "small"
    yield "pack", run(cli, ["pack", str(files[0]), str(packed)]).output
    yield "pack --image-size", run(cli, ["pack", str(files[1]), str(small), "--image-size", "16x8"]).output
    yield "pack --image-size 16", str(run(cli, ["pack", str(files[1]), str(small), "--image-size", "16"]).exception)
    yield "inspect", run(cli, ["inspect", str(packed)]).output
    yield "inspect of HDF5", run(cli, ["inspect", str(files[0])]).output
    yield "unlike sources", error_of(lambda: open_dataset([packed, small]))
    streams = [es.EpisodeStream(source) for source in (packed, small)]
    yield "Mixture", error_of(lambda: es.Mixture(streams, [1, 1]))
    yield "pack of a frame of another size", error_of(lambda: es.pack(wide(folder / "wide.hdf5"), folder / "other"))


def test_texts_with_sizes_have_the_width_first_and_say_so(files, tmp_path):
    seen = 0
    for who, text in texts_with_sizes(files, tmp_path):
        for width, height in SIZE.findall(text):
            assert (int(width), int(height)) in {(32, 24), (16, 8), (WIDE, HIGH), (320, 240)}, f"{who}: {text}"
            seen += 1
        if SIZE.search(text):
            assert re.search(r"width x height|WIDTHxHEIGHT", text), f"{who}: {text}"
    assert seen >= 6


def test_options_name_the_order_of_their_sides():
    stream = error_of(lambda: es.EpisodeStream("nowhere", image_size=[0, 1]))
    config = error_of(lambda: load_config(image_size=[0, 1]))
    pack = error_of(lambda: es.pack("nowhere", "out", image_size=[0, 1]))
    assert "(height, width)" in stream
    assert "[width, height]" in config  # that of packing, which it found
    assert "(width, height)" in pack
    helps = {name: CliRunner().invoke(cli, [name, "--help"]).output for name in ("pack", "tune")}
    assert "WxH" in helps["pack"]
    assert "[width, height]" in " ".join(helps["pack"].split())
    assert "HEIGHT WIDTH" in helps["tune"]


def test_no_text_of_the_program_has_the_height_first():
    """In every text of the source a size has its width first, and none formats a height before an x."""
    for room in ("epistream", "sharding", "loader", "cache", "configs"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    for width, height in SIZE.findall(node.value):
                        assert int(width) >= int(height) or int(width) < 100, f"{file}:{node.lineno}: {node.value}"
                elif isinstance(node, ast.JoinedStr):
                    text = ast.unparse(node)
                    assert not re.search(r"\{height\}x\{width|\{shape\[0\]\}x\{shape\[1\]", text), (
                        f"{file}:{node.lineno}"
                    )
