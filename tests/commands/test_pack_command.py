import os
import pty
import re
import subprocess
import sys

import pytest
from click.testing import CliRunner
from hdf5_files import aloha_jpeg, aloha_raw, manifest

from epistream.commands.pack import command
from epistream.errors import EpistreamError

DEADLINE_S = 60
PROGRAM = [sys.executable, "-c", "from epistream.commands import main; main()", "pack"]


def run(*arguments):
    return subprocess.run(
        [*PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )


def test_pack_command_tells_what_it_did_and_is_silent_on_stderr(tmp_path):
    aloha_jpeg(tmp_path / "in" / "a.hdf5", 4)
    done = run(tmp_path / "in", tmp_path / "out", "--workers", 1)
    assert (done.returncode, done.stderr) == (0, "")
    assert "1 episode, 4 steps from 1 act-plus-plus file\n" in done.stdout
    assert "observation.images.top: 32x24x3 jpeg, copied byte for byte" in done.stdout
    assert manifest(tmp_path / "out")["fingerprint"] in done.stdout


def test_pack_command_reports_fidelity_of_encoded_cameras(tmp_path):
    aloha_raw(tmp_path / "in" / "a.hdf5", 4)
    done = run(tmp_path / "in", tmp_path / "out", "--workers", 1)
    assert re.search(r"top: 32x24x3 jpeg, encoded: PSNR \d+\.\d dB, worst \d+\.\d dB \(2 frames\)", done.stdout)


def test_pack_command_bad_files_are_listed_and_the_exit_code_is_1(tmp_path):
    aloha_jpeg(tmp_path / "in" / "a.hdf5", 4)
    (tmp_path / "in" / "b.hdf5").write_text("no")
    done = run(tmp_path / "in", tmp_path / "out")
    assert done.returncode == 1
    assert f"{tmp_path}/in/b.hdf5: cannot be read as HDF5" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_pack_command_skip_bad_lists_what_it_left_out(tmp_path):
    aloha_jpeg(tmp_path / "in" / "a.hdf5", 4)
    (tmp_path / "in" / "b.hdf5").write_text("no")
    done = run(tmp_path / "in", tmp_path / "out", "--skip-bad")
    assert done.returncode == 0
    assert f"left out: {tmp_path}/in/b.hdf5: " in done.stdout


def test_pack_command_passes_every_option_on(tmp_path, monkeypatch):
    seen = {}

    def pack(sources, out, **options):
        seen.update(options, sources=sources, out=out)
        raise EpistreamError("enough")

    monkeypatch.setattr("epistream.commands.pack.pack", pack)
    line = (
        "a b out --layout aloha --codec png --quality 80 --crf 23 --gop 8 --preset fast "
        "--shard-size 1MiB --camera top --camera wrist --drop x.* "
        "--rename top=front --color-order rgb --image-size 320x240 --fps 30 --episodes 0:9 --val-fraction 0.1 "
        '--split-seed 7 --workers 3 --resume --skip-bad --allow-outside-files --storage-options {"s3":{"anon":true}}'
    )
    CliRunner().invoke(command, line.split())
    seen.pop("progress")
    assert seen == {
        "sources": ("a", "b"),
        **{"engine": "local", "address": None, "task_index": None, "num_tasks": None, "publish": False},
        "out": "out",
        "layout": "aloha",
        "codec": "png",
        "quality": 80,
        "crf": 23,
        "gop": 8,
        "preset": "fast",
        "shard_size": "1MiB",
        "cameras": ("top", "wrist"),
        "drop": ("x.*",),
        "rename": [("top", "front")],
        "color_order": "rgb",
        "force_color_order": False,
        "image_size": (320, 240),
        "fps": 30.0,
        "episodes": "0:9",
        "val_fraction": 0.1,
        "split_seed": 7,
        "workers": 3,
        "resume": True,
        "overwrite": False,
        "skip_bad": True,
        "allow_outside_files": True,
        "storage_options": {"s3": {"anon": True}},
    }


def test_pack_command_takes_files_as_a_shell_expands_them_in_natural_order(monkeypatch):
    seen = []

    def pack(sources, out, **options):
        seen.append(sources)
        raise EpistreamError("enough")

    monkeypatch.setattr("epistream.commands.pack.pack", pack)
    CliRunner().invoke(command, ["e_1.hdf5", "e_10.hdf5", "e_2.hdf5", "out"])
    CliRunner().invoke(command, ["e_2.hdf5", "e_1.hdf5", "out"])
    assert seen == [("e_1.hdf5", "e_2.hdf5", "e_10.hdf5"), ("e_2.hdf5", "e_1.hdf5")]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--image-size", "320"], "wanted WIDTHxHEIGHT"),
        (["--rename", "top"], "wanted OLD=NEW"),
        (["--shard-size", "huge"], "wanted a size such as 128MiB"),
        (["--workers", "0"], "workers: 0"),
    ],
)
def test_pack_command_bad_option_is_one_line(tmp_path, option, words):
    aloha_raw(tmp_path / "a.hdf5")
    done = run(tmp_path, tmp_path / "out", *option)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_pack_command_shows_progress_on_a_terminal(tmp_path):
    for seed in range(3):
        aloha_raw(tmp_path / "in" / f"{seed}.hdf5", 200, seed)
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    arguments = [*PROGRAM, str(tmp_path / "in"), str(tmp_path / "out"), "--codec", "png", "--workers", "1"]
    process = subprocess.Popen(arguments, stderr=theirs, stdout=subprocess.PIPE, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    out, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0
    assert b"packing" in shown
    assert b"3/3 episodes" in shown
    assert b"3 episodes, 600 steps" in out
