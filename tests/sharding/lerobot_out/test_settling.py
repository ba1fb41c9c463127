"""Files get their names once their bytes are on the disk, and not before."""

import os
import threading

import pytest

from epistream.errors import PackError
from epistream.sharding.lerobot_out.settling import Settling


def test_files_are_named_once_they_are_on_the_disk_many_at_a_time(tmp_path, monkeypatch):
    waiting, enough, real = [], threading.Event(), os.fsync

    def fsync(descriptor):
        waiting.append(descriptor)
        if len(waiting) == 8:
            assert not list(tmp_path.glob("final*"))
            enough.set()
        assert enough.wait(60)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with Settling() as settling:
        for number in range(10):
            (tmp_path / f"new{number}").write_bytes(bytes([number]))
            settling.add(str(tmp_path / f"new{number}"), str(tmp_path / f"final{number}"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        f"final{number}": bytes([number]) for number in range(10)
    }


def test_a_file_that_does_not_reach_the_disk_is_not_named(tmp_path, monkeypatch):
    (tmp_path / "new").write_bytes(b"x")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with (
        pytest.raises(PackError, match=r"final: cannot be written \(No space left on device\)"),
        Settling() as settling,
    ):
        settling.add(str(tmp_path / "new"), str(tmp_path / "final"))
    assert not (tmp_path / "final").exists()


def test_what_went_wrong_before_is_told_rather_than_what_follows_from_it(tmp_path):
    settling = Settling()
    settling.add(str(tmp_path / "gone"), str(tmp_path / "final"))
    settling.__exit__(ZeroDivisionError, ZeroDivisionError())  # raises nothing of its own
    assert not (tmp_path / "final").exists()
