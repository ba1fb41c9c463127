"""Processes end with their parent, whatever kills it, and say in one wording how they ended."""

import contextlib
import os
import signal
import subprocess
import sys

import psutil
import pytest
from machine.waiting import is_gone, wait_until

from epistream.processes import how_it_ended

DEADLINE_S = 60

# A process forked later holds a copy of the pipe that would tell of the parent's end.
BYSTANDER = """
import os, time

def fork_bystander():
    if os.fork() == 0:
        time.sleep(600)
        os._exit(0)
"""
ALONE = f"""
import multiprocessing, sys
from epistream.processes import end_with_parent
{BYSTANDER}
def live(grace_s):
    end_with_parent(grace_s)
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    process = multiprocessing.get_context(sys.argv[1]).Process(target=live, args=(float(sys.argv[2]),), daemon=True)
    process.start()
    if sys.argv[1] != "forkserver":  # whose server would live on through the bystander's copies
        fork_bystander()
    process.join()
"""
PACKING = f"""
from epistream.sharding.tasks.pool import TaskPool
{BYSTANDER}
def live(task, pulse):
    print(os.getpid(), flush=True)
    time.sleep(600)

ticks = []
def tick(num_episodes, num_bytes):
    if not ticks:
        fork_bystander()
    ticks.append(1)

if __name__ == "__main__":
    with TaskPool(2, "job") as pool:
        list(pool.map(live, [0, 1], tick))
"""
UNWINDING = f"""
import multiprocessing, sys
from epistream.processes import end_with_parent

def live(path):
    end_with_parent({DEADLINE_S})
    try:
        print("there", flush=True)
        multiprocessing.Event().wait()
    finally:
        open(path, "w").close()

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=live, args=(sys.argv[1],))
    process.start()
    process.join()
"""


@pytest.fixture
def start(tmp_path):
    """Start a program in a group of its own; returns it and the first lines that it and its children print."""
    programs = []

    def start(code, num_lines, *arguments):
        path = tmp_path / "program.py"
        path.write_text(code)
        program = subprocess.Popen(
            [sys.executable, path, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        programs.append(program)
        lines = [program.stdout.readline().strip() for _ in range(num_lines)]
        assert all(lines), program.stderr.read()
        return program, lines

    yield start
    for program in programs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
        with program:  # closes its pipes
            program.wait(DEADLINE_S)


@pytest.mark.parametrize("grace_s", ["0", "5"])
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_process_whose_parent_is_killed_ends_although_a_bystander_lives(start, method, grace_s):
    program, (pid,) = start(ALONE, 1, method, grace_s)
    wait_until(lambda: len(psutil.Process(program.pid).children(recursive=True)) > 1, "the others are there")
    program.kill()
    wait_until(lambda: is_gone(int(pid)), "it ends")


def test_packing_processes_whose_job_is_killed_end_although_a_bystander_lives(start):
    program, pids = start(PACKING, 2)
    wait_until(lambda: len(psutil.Process(program.pid).children()) > 2, "the bystander is forked")
    program.kill()
    wait_until(lambda: all(is_gone(int(pid)) for pid in pids), "they end")


@pytest.mark.parametrize("sent_to", ["parent", "process"])
def test_process_with_time_to_unwind_uses_it_when_parent_or_process_is_told_to_end(start, tmp_path, sent_to):
    program, _ = start(UNWINDING, 1, str(tmp_path / "unwound"))
    (process,) = [child for child in psutil.Process(program.pid).children() if "spawn_main" in str(child.cmdline())]
    if sent_to == "parent":
        program.kill()
    else:
        process.send_signal(signal.SIGINT)  # nobody's business but the parent's
        process.terminate()
    wait_until((tmp_path / "unwound").exists, "it unwinds")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (None, "ended unexpectedly"),
        (3, "exited with code 3"),
        (-signal.SIGSEGV, "killed by SIGSEGV"),
        (-signal.SIGKILL, "killed by SIGKILL, usually by the kernel, out of memory"),
        (-signal.SIGRTMIN - 1, f"killed by signal {signal.SIGRTMIN + 1}"),
    ],
)
def test_end_of_a_process_is_told_by_signal_or_code(code, words):
    assert how_it_ended(code) == words


def test_end_of_a_process_by_a_full_memory_file_system_is_told_as_such():
    assert how_it_ended(-signal.SIGBUS, "was ended").startswith("was ended by SIGBUS, ")
    assert "/dev/shm" in how_it_ended(-signal.SIGBUS)
