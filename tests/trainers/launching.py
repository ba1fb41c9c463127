"""The grid's rows, and how a program of it is started, waited for and ended with all that it started."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

# Of the data and the jobs of the grid: 144 windows are 18 batches an epoch on one rank, 9 on two.
LENGTHS = (11, 23, 7, 30, 17, 29, 14, 13)
BATCH_SIZE = 8
NUM_EPOCHS = 3

PROGRAMS = Path(__file__).resolve().parent / "programs"
# A start imports torch, a trainer and, under torchrun, torch once more: seconds, on a crowded machine tens of seconds.
DEADLINE_S = 240
# Names a process, its children and theirs as ours, also where they were given sessions and parents of their own.
MARK = "EPISTREAM_GRID_JOB"


@dataclass(frozen=True)
class Row:
    """A trainer of the grid.

    Args:
        program: its file in `programs`, without the suffix.
        under_torchrun: whether torchrun starts the ranks; a program starts its own otherwise.
        tells_nodes: whether its launcher says which ranks share a node; every rank counts as a node otherwise, and gets
            another part of the same global batches.
        refusals: the sentence that answers a cell instead of windows, as a pattern, by workers and circumstance.
    """

    program: str
    under_torchrun: bool = True
    tells_nodes: bool = True
    refusals: dict[tuple[int, str], str] = field(default_factory=dict)


ROWS = (
    Row("plain_ddp"),
    Row("lightning_trainer", under_torchrun=False, tells_nodes=False),
    Row("hf_trainer"),
    Row("accelerate_loop"),
    Row("fabric_loop"),
    Row(
        "stock_dataloader",
        refusals={
            (2, "mid-epoch"): "StateError: state_dict: 2 workers of a DataLoader read this stream ahead of the loop"
        },
    ),
    Row("stateful_dataloader"),
    Row("ray_train", under_torchrun=False),
)


@dataclass(frozen=True)
class Start:
    """One start of a program, as its job.json has it; see `Job` in `programs/common.py`."""

    data: str
    out: str
    cache: str
    ranks: int
    workers: int
    epochs: int
    stop: int | None = None
    resume: bool = False


@dataclass(frozen=True)
class Ended:
    """How a start ended: its exit status (None: it was killed at the deadline) and all that it printed."""

    status: int | None
    printed: str


def launch(program: Path, start: Start, under_torchrun: bool, deadline_s: float = DEADLINE_S) -> Ended:
    """Run a program to its end, or to the deadline; nothing that it started outlives the call."""
    out = Path(start.out)
    note = out / "job.json"
    note.write_text(json.dumps(asdict(start)))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(start.ranks)]
    command = [sys.executable, *(torchrun if under_torchrun else ()), str(program), str(note)]
    mark = uuid.uuid4().hex
    # Short, because names of sockets are made of it, which may have 107 bytes.
    scratch = tempfile.mkdtemp(prefix="grid-")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")},
        **{MARK: mark, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAMS), "TMPDIR": scratch},
        **{"XDG_CACHE_HOME": f"{scratch}/cache", "HF_HUB_OFFLINE": "1", "RAY_USAGE_STATS_ENABLED": "0"},
    }
    # Into a file: a pipe would be waited for as long as any grandchild holds it.
    with Path(scratch, "printed").open("w+", errors="replace") as printed:
        job = subprocess.Popen(
            command, stdout=printed, stderr=printed, env=environment, cwd=scratch, start_new_session=True
        )
        try:
            status = job.wait(deadline_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            end_all(mark)
            job.wait(10)
            printed.seek(0)
            text = printed.read()
            shutil.rmtree(scratch, ignore_errors=True)
    return Ended(status, text)


def marked(mark: str) -> list[psutil.Process]:
    """The processes whose environment has this mark."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):  # ended meanwhile, or another user's
            continue
    return found


def end_all(mark: str) -> None:
    """Kill every process with this mark, and those that they started meanwhile."""
    for _ in range(6):
        processes = marked(mark)
        if not processes:
            return
        for process in processes:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(processes, timeout=10)
    raise TimeoutError(f"still there a minute after they were killed: {marked(mark)}")
