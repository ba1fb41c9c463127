import gc
import os

import numpy as np
import pytest
import torch

from epistream.loader.workers.pipe import Record, RecordKind, RecordPipe
from epistream.loader.workers.ring import Ring


def test_ring_slot_is_given_back_only_when_the_last_view_dies():
    ring, returned = Ring(3, 100), []
    block = ring.hand_out(1, returned.append)
    tensor = torch.from_numpy(block[10:20].view(np.uint8).reshape(2, 5))
    row = tensor[1]
    del block, tensor
    gc.collect()
    assert returned == []
    row[:] = 7  # still ours to use
    del row
    gc.collect()
    assert returned == [1]


def test_ring_slots_do_not_overlap_and_are_page_aligned():
    ring = Ring(3, 5000)
    assert ring.slot_bytes == 8192
    for number in range(3):
        ring.slot(number)[:] = number + 1
    assert [set(ring.slot(number).tolist()) for number in range(3)] == [{1}, {2}, {3}]


def test_ring_closed_while_a_batch_is_held_keeps_the_batch():
    ring, returned = Ring(1, 64), []
    block = ring.hand_out(0, returned.append)
    block[:] = 9
    ring.close()
    del ring
    gc.collect()
    assert set(block.tolist()) == {9}


def test_ring_batch_dropped_in_a_forked_child_gives_nothing_back():
    ring = Ring(1, 64)
    read_fd, write_fd = os.pipe()
    block = ring.hand_out(0, lambda slot: os.write(write_fd, b"x"))
    pid = os.fork()
    if pid == 0:
        del block
        gc.collect()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    os.set_blocking(read_fd, False)
    with pytest.raises(BlockingIOError):
        os.read(read_fd, 1)
    del block
    gc.collect()
    assert os.read(read_fd, 1) == b"x"
    os.close(read_fd)
    os.close(write_fd)


def test_record_pipe_delivers_records_in_order_and_ignores_sends_after_close():
    pipe = RecordPipe()
    assert pipe.receive() == []
    assert not pipe.wait(timeout_s=0.0)
    pipe.send(Record(RecordKind.RUN, 1, 2, 3))
    pipe.send(Record(RecordKind.SLOT, -5))
    assert pipe.wait(timeout_s=10.0)
    assert pipe.receive() == [Record(RecordKind.RUN, 1, 2, 3), Record(RecordKind.SLOT, -5)]
    pipe.close()
    # The numbers of the closed descriptors may belong to somebody's file by now: nothing may be written to them.
    files = [os.memfd_create("bystander") for _ in range(2)]
    pipe.send(Record(RecordKind.STOP))
    assert [os.fstat(fd).st_size for fd in files] == [0, 0]
    for fd in files:
        os.close(fd)
