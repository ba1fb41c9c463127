"""The way from the training process to a worker: fixed-size records on a pipe.

A write of one record is atomic and reentrant, so a finalizer may send one from any thread and from inside the
garbage collector, in the middle of another send.
"""

import os
import select
import struct
from enum import IntEnum
from multiprocessing import reduction
from typing import Any, NamedTuple

_RECORD = struct.Struct("<4q")


class RecordKind(IntEnum):
    """What a record says."""

    STOP = 0
    RUN = 1  # begin an epoch: serial, epoch, start position; whatever ran before is abandoned
    SLOT = 2  # a slot is free again: slot number


class Record(NamedTuple):
    """One message to a worker."""

    kind: RecordKind
    first: int = 0
    second: int = 0
    third: int = 0


class RecordPipe:
    """One pipe of records. The same object serves both ends; a worker process inherits or unpickles it."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)

    def send(self, record: Record) -> None:
        """Send without waiting. After `close`, and to a worker that is gone, nothing happens."""
        # The check matters: a closed descriptor's number may already belong to somebody's file.
        if self._write_fd >= 0:
            try:
                os.write(self._write_fd, _RECORD.pack(*record))
            except BrokenPipeError:
                return

    def receive(self) -> list[Record]:
        """Everything that has arrived, without waiting."""
        records: list[Record] = []
        while True:
            try:
                data = os.read(self._read_fd, _RECORD.size * 64)
            except BlockingIOError:
                return records
            if not data:
                return records
            for kind, *values in _RECORD.iter_unpack(data):
                records.append(Record(RecordKind(kind), *values))

    def wait(self, timeout_s: float) -> bool:
        """Wait until something arrives; False after `timeout_s`."""
        poll = select.poll()
        poll.register(self._read_fd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def close(self) -> None:
        """Close both ends in this process."""
        ends = self._write_fd, self._read_fd
        self._write_fd = self._read_fd = -1  # first: a finalizer may send at any moment
        for fd in ends:
            if fd >= 0:
                os.close(fd)

    def __getstate__(self) -> dict[str, Any]:
        return {"_read_fd": reduction.DupFd(self._read_fd), "_write_fd": reduction.DupFd(self._write_fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._read_fd = state["_read_fd"].detach()
        self._write_fd = state["_write_fd"].detach()
