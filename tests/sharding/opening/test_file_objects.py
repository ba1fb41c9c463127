"""HDF5 through file objects: nothing of it outlives the file, and nothing the interpreter."""

import gc
import io
import subprocess
import sys
import weakref

import h5py
import numpy as np
import pytest

from epistream.sharding.opening.file_objects import open_through


class Bytes(io.BytesIO):
    """A file object that keeps what went wrong, as those of remote files do."""

    failure: Exception | None = None
    is_broken = False

    def readinto(self, buffer):
        try:
            if self.is_broken:
                raise OSError("the server is gone")
            return super().readinto(buffer)
        except OSError as error:
            self.failure = error
            raise


@pytest.fixture
def data():
    written = io.BytesIO()
    with h5py.File(written, "w") as file:
        file["rows"] = np.arange(5)
    return written.getvalue()


def test_file_through_an_object_reads_as_h5py_does_and_has_the_name_it_was_given(data):
    with open_through(io.BytesIO(data), "<s3://room/é.hdf5>") as file:
        assert file["rows"][:].tolist() == [0, 1, 2, 3, 4]
        assert file.filename == "<s3://room/é.hdf5>"
        assert file.mode == "r"
    assert not file


def test_object_that_keeps_its_failure_is_let_go_of_when_opening_fails(data):
    source = Bytes(data)
    source.is_broken, known = True, weakref.ref(source)
    with pytest.raises(OSError, match="the server is gone"):
        open_through(source, "x")
    assert source.failure is not None
    del source
    gc.collect()
    assert known() is None


def test_object_is_let_go_of_while_somebody_keeps_the_error_of_opening_it():
    source = io.BytesIO(b"no HDF5" * 100)
    with pytest.raises(OSError, match="file signature not found") as kept:
        open_through(source, "x")
    held = [name for name, value in vars_of(kept.value) if isinstance(value, h5py.h5p.PropFAID) and value.valid]
    assert held == []


def vars_of(error):
    traceback = error.__traceback__
    while traceback:
        yield from traceback.tb_frame.f_locals.items()
        traceback = traceback.tb_next


def test_object_is_let_go_of_when_its_file_is_forgotten(data):
    source = Bytes(data)
    known = weakref.ref(source)
    file = open_through(source, "x")
    rows = file["rows"]
    del file, source
    gc.collect()
    assert not rows
    assert known() is None


KEEPS = """
import ctypes, io, sys
import h5py
from epistream.sharding.opening.file_objects import open_through

class Broken(io.BytesIO):
    def readinto(self, buffer):
        raise OSError("the server is gone")

def keep(what):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(what))  # as in a circle that goes through HDF5

if sys.argv[1] == "error":
    for _ in range(3):
        try:
            open_through(Broken(b"x" * 4096), "x")
        except OSError as error:
            keep(error)
else:
    written = io.BytesIO()
    with h5py.File(written, "w") as file:
        file["rows"] = [1, 2, 3]
    file = open_through(written, "x")
    for what in (file, file.id, file["rows"]):
        keep(what)
print("at the end")
"""


@pytest.mark.parametrize("what", ["error", "file"])
def test_process_that_keeps_an_error_or_a_file_to_its_end_ends_well(what):
    done = subprocess.run([sys.executable, "-c", KEEPS, what], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "at the end\n", "")
