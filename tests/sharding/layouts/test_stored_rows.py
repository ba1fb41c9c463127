"""Rows that are taken from the bytes of a file are those that HDF5 reads, and HDF5 is asked wherever it must be."""

import h5py
import numpy as np
import pytest

from epistream.sharding.layouts.stored_rows import stored_rows
from epistream.sharding.opening.file_objects import open_through
from epistream.sharding.opening.source_bytes import BlocksOfFile, BytesInMemory

ROWS = np.random.default_rng(0).integers(0, 256, (50, 700), np.uint8)


def make(path, data=ROWS, *, userblock=None, written=slice(None), **how):
    with h5py.File(path, "w", userblock_size=userblock) as file:
        made = file.create_dataset("a/rows", data.shape, data.dtype, **how)
        made[written] = data[written]
    return path


def taken(path, first=0, length=50, name="a/rows"):
    """The rows taken from the bytes of a file, None where HDF5 is to read them; and what HDF5 reads."""
    content = BytesInMemory(memoryview(path.read_bytes()))
    with open_through(content.open(), str(path)) as file:
        content.opened()
        rows = stored_rows(file[name], content, first, length)
        found = None if rows is None else [bytes(row) for row in rows]
        return found, [bytes(row) for row in file[name][first : first + length]]


@pytest.mark.parametrize(("first", "length"), [(0, 50), (7, 20), (49, 1), (3, 0)])
@pytest.mark.parametrize("how", [{}, {"maxshape": (None, 700)}, {"track_times": True}])
def test_rows_that_are_chunks_are_taken_from_the_bytes(tmp_path, first, length, how):
    found, wanted = taken(make(tmp_path / "a.hdf5", chunks=(1, 700), **how), first, length)
    assert found == wanted
    assert len(found) == length


def test_file_that_was_written_in_any_order_gives_its_rows_in_order(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w", libver="latest") as file:
        rows = file.create_dataset("a/rows", ROWS.shape, ROWS.dtype, chunks=(1, 700))
        for number in np.random.default_rng(1).permutation(len(ROWS)):
            rows[number] = ROWS[number]
    found, wanted = taken(tmp_path / "a.hdf5")
    assert found == wanted == [row.tobytes() for row in ROWS]


@pytest.mark.parametrize(
    "how",
    [
        {"chunks": (2, 700)},
        {"chunks": (1, 350)},
        {"chunks": None},
        {"chunks": (1, 700), "compression": "gzip"},
        {"chunks": (1, 700), "shuffle": True},
        {"chunks": (1, 700), "fletcher32": True},
        {"chunks": (1, 700), "userblock": 512},
        {"chunks": (1, 700), "written": slice(0, 40)},  # the others have the fill value
        {"chunks": (1, 700), "data": ROWS.astype(np.int16)},
    ],
)
def test_rows_that_lie_there_otherwise_are_left_to_hdf5(tmp_path, how):
    found, wanted = taken(make(tmp_path / "a.hdf5", **how))
    assert found is None
    assert len(wanted) == 50


def test_rows_of_a_file_that_is_cut_off_are_left_to_hdf5(tmp_path):
    path = make(tmp_path / "a.hdf5", chunks=(1, 700))
    content = BytesInMemory(memoryview(path.read_bytes()))
    with open_through(content.open(), str(path)) as file:
        content.num_bytes -= 20_000
        assert stored_rows(file["a/rows"], content, 0, 50) is None


def test_virtual_rows_and_files_that_are_not_at_hand_are_left_to_hdf5(tmp_path):
    path = make(tmp_path / "a.hdf5", chunks=(1, 700))
    with h5py.File(path, "r+") as file:
        layout = h5py.VirtualLayout((50, 700), np.uint8)
        layout[:] = h5py.VirtualSource(file["a/rows"])
        file.create_virtual_dataset("virtual", layout)
    assert taken(path, name="virtual")[0] is None
    with h5py.File(path) as file, BlocksOfFile(path) as blocks:
        assert stored_rows(file["a/rows"], None, 0, 50) is None
        assert stored_rows(file["a/rows"], blocks, 0, 50) is None


def test_file_with_damaged_headers_gives_what_hdf5_reads_or_is_left_to_it(tmp_path):
    path = make(tmp_path / "a.hdf5", chunks=(1, 700))
    whole, random = path.read_bytes(), np.random.default_rng(2)
    rows = [whole.find(row.tobytes()) for row in ROWS]
    headers = [at for at in range(len(whole)) if not any(start <= at < start + 700 for start in rows)]
    num_taken = 0
    for at in random.choice(headers, 400, replace=False).tolist():
        data = bytearray(whole)
        data[at] ^= int(random.integers(1, 256))
        content = BytesInMemory(memoryview(data))
        try:
            with open_through(content.open(), "a.hdf5") as file:
                found = file["a/rows"]
                taken_rows = stored_rows(found, content, 0, min(50, len(found)))
                wanted = [row.tobytes() for row in found[:50]]
        except (OSError, RuntimeError, ValueError, KeyError, TypeError):  # as HDF5 and h5py refuse damaged files
            continue
        if taken_rows is not None:
            num_taken += 1
            # What HDF5 does not find by a damaged key it takes for never written.
            assert all(bytes(row) == one or not any(one) for row, one in zip(taken_rows, wanted, strict=True)), at
    assert num_taken > 50
