"""Edits that are killed at every step in turn: before each write, sync, rename and removal that they make.

Run as a program, with a scenario, a folder and a stride: each edit takes place in a child that kills itself at step n,
for n = 0, stride, 2 x stride ... until one ends by itself. After each death the dataset must be the old or the new one.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import epistream as es
from epistream.errors import EditError, EpistreamError
from epistream.sharding.check.verify import VerifyOptions, verify
from epistream.sharding.edit.pruning import prune

_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree"}


@dataclass(frozen=True)
class Scenario:
    """What is done before, the edit that is killed, and what it makes: recordings' lengths, in their order."""

    before: Callable[[Path], object]
    edit: Callable[[Path], object]
    old: list[int]
    new: list[int]
    goes_on: bool = True  # the same edit again works, or says that nothing is left to do


def _sources(at: Path) -> list[str]:
    return [str(path) for path in sorted((at / "later").glob("*.hdf5"))]


def _nothing(at: Path) -> None:
    """Edit the dataset as it was packed."""


def _edited(at: Path) -> None:
    es.edit.remove(at / "set", "1")
    es.edit.tasks(at / "set", "go", "0")


def _pruned(at: Path) -> None:
    _edited(at)
    es.edit.remove(at / "set", "1")
    es.edit.add(at / "set", _sources(at))
    es.edit.undo(at / "set")


SCENARIOS = {
    "remove": Scenario(_nothing, lambda at: es.edit.remove(at / "set", "0, 2"), [4, 5, 6, 7], [5, 7], goes_on=False),
    "trim": Scenario(_edited, lambda at: es.edit.trim(at / "set", (1, None)), [4, 6, 7], [4, 6, 7]),
    "undo": Scenario(_edited, lambda at: es.edit.undo(at / "set"), [4, 6, 7], [4, 6, 7], goes_on=False),
    "add": Scenario(_edited, lambda at: es.edit.add(at / "set", _sources(at)), [4, 6, 7], [4, 6, 7, 7, 8]),
    "compact": Scenario(_edited, lambda at: es.edit.compact(at / "set"), [4, 6, 7], [4, 6, 7]),
    "prune": Scenario(_pruned, lambda at: prune(at / "set", 1), [4, 7], [4, 7]),
    "compact and prune": Scenario(_edited, lambda at: es.edit.compact(at / "set", prune_to=0), [4, 6, 7], [4, 6, 7]),
}


def run_killed(step: int, edit: Callable[[], object]) -> bool:
    """Run an edit in a child that kills itself at a step; whether it was killed.

    Raises:
        RuntimeError: If it failed otherwise.
    """
    child = os.fork()
    if not child:
        code = 1
        with contextlib.suppress(BaseException):
            _count(step)
            edit()
            code = 0
        os._exit(code)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        return True
    if os.WEXITSTATUS(status):
        raise RuntimeError(f"the edit that was to be killed at step {step} failed")
    return False


def _count(step: int) -> None:
    left = [step]

    def tick() -> None:
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1

    def look(event: str, arguments: tuple[object, ...]) -> None:
        if event in _EVENTS or (event == "open" and isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE):
            tick()

    real_sync = os.fsync

    def sync(fd: int) -> None:
        tick()
        real_sync(fd)

    os.fsync = sync
    sys.addaudithook(look)


def check(at: Path, scenario: Scenario, before: str) -> None:
    """See that the dataset is whole, that all of its kept states are, and that edits go on."""
    url = at / "set"
    dataset = es.open_dataset(url)
    lengths = dataset.episode_length.tolist()
    assert lengths == (scenario.old if dataset.fingerprint == before else scenario.new), (lengths, dataset.fingerprint)
    assert verify(dataset, VerifyOptions(statistics=True, num_threads=1)).faults == []
    for kept in sorted(url.glob("manifest-*.json")):
        state = es.open_dataset(f"{url}@{kept.stem.removeprefix('manifest-')}")
        assert verify(state, VerifyOptions(sample=0, num_threads=1)).faults == [], kept
    try:
        scenario.edit(at)
    except EditError as error:
        if scenario.goes_on and not any(text in str(error) for text in ("so already", "has all", "no step is cut off")):
            raise
    except EpistreamError:
        if scenario.goes_on:
            raise
    es.edit.tasks(url, "afterwards")
    assert verify(es.open_dataset(url), VerifyOptions(sample=0, num_threads=1)).faults == []


def main() -> None:
    """Kill one scenario at its steps, and tell how many there are."""
    scenario, folder, stride = SCENARIOS[sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3])
    start = folder / "start"
    scenario.before(start)
    before = es.open_dataset(start / "set").fingerprint
    step, was_killed = 0, True
    while was_killed:
        at = folder / f"at {step}"
        shutil.copytree(start, at)
        was_killed = run_killed(step, lambda at=at: scenario.edit(at))
        try:
            check(at, scenario, before)
        except BaseException as error:
            error.add_note(f"killed at step {step}; see {at}")
            raise
        shutil.rmtree(at)
        step += stride
    print(json.dumps({"num_steps": step}))


if __name__ == "__main__":
    main()
