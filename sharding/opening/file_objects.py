"""HDF5 read through a file object of ours, which is let go of in time."""

import weakref
from typing import Any

import h5py


def open_through(source: Any, name: str) -> h5py.File:
    """The HDF5 file in a file object, for reading.

    HDF5 holds the object without Python's knowledge, and its own end comes after Python's: what it let go of then would
    be let go of in an interpreter that is no more, and the process dies of a segmentation fault. Hence

    - the properties of the opening, which hold it too, are closed at once. `h5py.File(source)` leaves them to the
      frames of an opening that failed, which live as long as somebody keeps the error, as notebooks do; and if the
      object keeps it, for ever, in a circle that the garbage collector does not see.
    - a file that is still open when Python ends is closed before.

    Args:
        source: What h5py takes for a file.
        name: What h5py calls it.
    """
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    try:
        access.set_fileobj_driver(h5py.h5fd.fileobj_driver, source)
        opened = h5py.h5f.open(name.encode("utf-8", "surrogateescape"), h5py.h5f.ACC_RDONLY, fapl=access)
    finally:
        access.close()
    file = h5py.File(opened)
    weakref.finalize(file, _close, opened)
    return file


def _close(opened: h5py.h5f.FileID) -> None:
    if opened.valid:
        h5py.File(opened).close()
