"""/dev/shm full, read-only, tiny or not there: what does not need it works, the rest steps down with one warning."""

import copy
import functools
import io
import multiprocessing
import os
import pickle
import subprocess
import sys
from http.server import SimpleHTTPRequestHandler

import pytest
import torch
from web.serving import LoopbackServer, running

from epistream.loader.stream_cells import Cells, take_cells


def may_mount() -> bool:
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


# In a mount namespace of its own: /dev/shm as it may be, then streams, one after the other.
PROGRAM = """
import logging, subprocess, sys
import epistream as es

class Seen(logging.Handler):
    def emit(self, record):
        said.append(record.getMessage())

logging.getLogger("epistream").addHandler(Seen(logging.WARNING))

def count(source, num_workers):
    stream = es.EpisodeStream(source, batch_size=20, features=["action"])
    if not num_workers:
        return sum(len(batch["action"]) for batch in stream)
    with es.StreamingLoader(stream, num_workers=num_workers) as loader:
        return sum(len(batch["action"]) for batch in loader)

local, remote = sys.argv[1:]
for options, fill in (("size=64k", 1), ("size=64m,ro", 0), ("size=64m", 0), ("size=128m,nr_inodes=4", 0), ("", 0)):
    if options:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", "/dev/shm"], check=True)
    else:
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev"], check=True)  # nothing of it is needed but shm
    if fill:
        with open("/dev/shm/others", "wb", 0) as file:
            file.write(bytes(1 << 16))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", "/var/tmp"], check=True)
    for source, workers in ((local, 0), (remote, 0), (local, 2)):
        said = []
        total = count(source, workers)
        print(options or "none", "local" if source == local else "remote", workers, total, *said, sep="|", flush=True)
"""


@pytest.fixture(scope="module")
def said(aloha_shards):
    """The lines of PROGRAM by state of /dev/shm and source: windows, and what was warned of."""
    if not may_mount():
        pytest.skip("no mount namespaces here")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with running(LoopbackServer(functools.partial(quiet, directory=aloha_shards))) as url:
        command = ["unshare", "-m", sys.executable, "-c", PROGRAM, str(aloha_shards), f"{url}/"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = [line.split("|") for line in done.stdout.splitlines()]
    return {(row[0], row[1], row[2]): (int(row[3]), row[4:]) for row in rows}


STATES = ["size=64k", "size=64m,ro", "size=64m", "size=128m,nr_inodes=4", "none"]


@pytest.mark.parametrize("state", STATES)
def test_stream_whatever_shared_memory_is_gives_every_window(said, state):
    for workers in ("0", "2"):
        windows, warnings = said[state, "local", workers]
        assert windows == 140
        assert len(warnings) <= 1  # frames are not kept decoded
    windows, warnings = said[state, "remote", "0"]
    assert windows == 140
    assert len([text for text in warnings if "Cache tier shm left aside" in text]) == 1


def test_cells_of_a_spawned_child_are_those_of_its_parent():
    cells = take_cells()
    process = multiprocessing.get_context("spawn").Process(target=_add_one, args=(cells,))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    assert cells.tolist()[:2] == [1, 0]


def test_cells_of_a_forked_child_are_those_of_its_parent():
    cells = take_cells()
    child = os.fork()
    if child == 0:
        cells[0] = 7
        os._exit(0)
    os.waitpid(child, 0)
    assert int(cells[0]) == 7


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda cells: pickle.loads(pickle.dumps(cells))])
def test_copied_cells_are_not_shared(copied):
    cells = take_cells()
    cells[0] = 3
    other = copied(cells)
    cells[0] = 4
    assert int(other[0]) == 3
    file = io.BytesIO()
    torch.save(cells, file)
    file.seek(0)
    assert torch.load(file, weights_only=False).tolist() == cells.tolist()


def _add_one(cells: Cells) -> None:
    cells[0] = int(cells[0]) + 1
