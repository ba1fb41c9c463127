"""Whether a change made anything slower: this checkout beside an earlier commit, interleaved in one run.

    python benchmarks/before_after.py --before REV [--rounds 7] [--groups 480x640-jpeg,batch-1] [--json OUT]

REV is a commit, or the folder of another checkout. The code of both sides (of this checkout as its files are now) is
copied into a temporary folder, laid out as it is imported, and put in front of whatever is installed: the environment
and the checkouts stay as they are. The earlier code packs the data, which both read.

In each round, both sides of a group start a process and read in turns, one sleeping while the other reads, and the
first of one pair of turns is the second of the next: so a machine that slows down or speeds up meanwhile does so for
both. Read the ratios, after / before: of a round it is the median of those of its pairs of turns, and the table has the
median and the quartiles of the rounds. Windows/s depend on whoever else uses the machine, CPU seconds (of the process
and its workers) much less: on a busy machine they are the ones to believe. "first-batch" counts from before the import
of epistream to the first batch with an empty cache, in a process of its own each time.

A group is called slower or faster where the median says so by more than 2 %, and so many rounds that chance would make
it so in one of 40 (7 of 7, 9 of 10, 12 of 15; never less than 6). Of so many figures one still may by chance: measure
its group again, with more rounds, before you believe it.
"""

import argparse
import compileall
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from peers.contender import BATCH_SIZE, NUM_WORKERS
from peers.data import CHUNK, SCENARIOS
from peers.machine import machine
from rich import box
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
SIDES = ("before", "after")
_FOLDERS = ("epistream", "sharding", "cache", "loader", "configs")  # all but the first are sub-packages of the first
KEYS = {"windows_per_s": ",.0f", "cpu_s_per_1000": ".4f"}  # and how they are printed
_TURNS = 5  # of the two processes of a round
_STARTS = 3  # pairs of processes of a round, where the start is measured
_TIMEOUT_S = 120
_TELLING = 0.02  # medians that differ by less are called equal
_CHANCE = 0.025  # one side of the sign test
_WIDTH = 132  # of the table, where nobody says how wide the terminal is

Round = dict[str, list[dict[str, float]]]  # the figures of each turn, by side


@dataclass(frozen=True)
class Group:
    """One row of the result.

    Attributes:
        scenario: the windows, a name of `peers.data.SCENARIOS`.
        batch_size: windows of a batch.
        decode: of `EpisodeStream`; "once" is measured when everything was decoded by epochs before.
        loader: options of `StreamingLoader`.
        cache: mode of the cache, which is empty at the start of each measurement.
        is_start: what is measured is the time to the first batch.
    """

    scenario: str
    batch_size: int = BATCH_SIZE
    decode: str = "per_read"
    loader: dict[str, int] = field(default_factory=lambda: {"num_workers": NUM_WORKERS})
    cache: str = "auto"
    is_start: bool = False

    def options(self, data: Path, directory: str) -> dict[str, Any]:
        """As `one_side.py` takes them."""
        return {
            "dataset": str(data / self.scenario / "epistream" / "epistream"),
            "chunk": CHUNK,
            "stream": {"batch_size": self.batch_size, "decode": self.decode},
            "loader": self.loader,
            "cache": {"mode": self.cache, "directory": directory},
        }


GROUPS = {
    "480x640-jpeg": Group("480x640-jpeg"),
    "480x640-jpeg-threads": Group("480x640-jpeg", loader={"num_workers": 0, "num_threads": NUM_WORKERS}),
    "128x128-jpeg": Group("128x128-jpeg"),
    "low-dimensional": Group("low-dimensional"),
    # Small enough to share slots of the ring.
    "batch-1": Group("low-dimensional", batch_size=1),
    "batch-4": Group("low-dimensional", batch_size=4),
    "decoded-once": Group("480x640-jpeg", decode="once"),
    "first-batch": Group("480x640-jpeg", cache="shm", is_start=True),
}


def stage(source: str, site: Path) -> str:
    """Lay out the code of a commit or a folder in `site` as it is imported, and compile it; which commit it is."""
    site.mkdir(parents=True)
    if Path(source).is_dir():
        for name in _FOLDERS:
            shutil.copytree(Path(source, name), site / name, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        archive = site / "code.zip"
        _git(ROOT, "archive", "--format=zip", f"--output={archive}", source, *_FOLDERS)
        with zipfile.ZipFile(archive) as file:
            file.extractall(site)
        archive.unlink()
    for name in _FOLDERS[1:]:
        (site / name).rename(site / "epistream" / name)
    # Else the first process of each side would do it, inside its measurement.
    compileall.compile_dir(site, quiet=1)
    if not Path(source).is_dir():
        return _git(ROOT, "rev-parse", "--short", source)
    return _git(source, "describe", "--always", "--dirty", "--exclude=*") if Path(source, ".git").exists() else source


def _git(folder: str | Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {arguments[0]} in {folder}: {done.stderr.strip()}")
    return done.stdout.strip()


class Side:
    """A process of `one_side.py` with the code of a site, and what it is to do; it ends with the `with`."""

    def __init__(self, site: Path, what: str, **arguments: Any) -> None:
        self._site, self._what = site, what
        paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "one_side.py"), str(site), what, json.dumps(arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error: object) -> None:
        # Its input ends, and so does it; its workers too, should it have ended without them.
        with suppress(subprocess.TimeoutExpired):
            self._process.communicate(timeout=0 if any(error) else _TIMEOUT_S)
        self._kill()
        self._process.wait()

    def wait(self) -> None:
        """Until it is ready."""
        self._line()

    def do(self) -> dict[str, float]:
        """Let it do its thing once; what it tells."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        told: dict[str, float] = json.loads(self._line())
        return told

    def _line(self) -> str:
        assert self._process.stdout is not None
        alarm = threading.Timer(_TIMEOUT_S, self._kill)
        alarm.start()
        line = self._process.stdout.readline()
        alarm.cancel()
        if not line:
            raise SystemExit(
                f"{self._site.name}, {self._what}: it failed, or took more than {_TIMEOUT_S} s. See above."
            )
        return line

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)


def measure(group: Group, sites: dict[str, Path], data: Path, seconds: float, order: Iterator[str]) -> Round:
    """The figures of one round: turns of two processes, or for starts, one turn of several."""
    found: Round = {side: [] for side in SIDES}
    what, num_pairs, num_turns = ("start", _STARTS, 1) if group.is_start else ("rate", 1, _TURNS)
    for _ in range(num_pairs):
        with ExitStack() as stack:
            pair = {}
            for side in SIDES:
                directory = stack.enter_context(TemporaryDirectory(dir="/dev/shm", prefix="epistream-compare-"))
                arguments = {} if group.is_start else {"seconds": seconds / _TURNS}
                pair[side] = stack.enter_context(Side(sites[side], what, **arguments, **group.options(data, directory)))
            for process in pair.values():
                process.wait()
            for side in islice(order, 2 * num_turns):
                found[side].append(pair[side].do())
    return found


def ratios_of(rounds: list[Round]) -> dict[str, list[float]]:
    """Of each round, after / before: the median of those of its turns."""
    found = {}
    for key in KEYS:
        before, after = (np.array([[turn[key] for turn in each[side]] for each in rounds]) for side in SIDES)
        found[key] = [float(ratio) for ratio in np.median(after / before, axis=1)]
    return found


def verdict(ratios: dict[str, list[float]]) -> str:
    """Slower or faster, and by which figure; nothing where neither can be told."""
    words = []
    for key, word, is_cost in (("windows_per_s", "rate", False), ("cpu_s_per_1000", "CPU", True)):
        above = float(np.median(ratios[key])) > 1
        agreeing = sum((ratio > 1) == above for ratio in ratios[key])
        by_chance = sum(math.comb(len(ratios[key]), k) for k in range(agreeing, len(ratios[key]) + 1))
        if abs(np.median(ratios[key]) - 1) > _TELLING and by_chance / 2 ** len(ratios[key]) < _CHANCE:
            words.append(f"{'slower' if above == is_cost else 'faster'}: {word}")
    return ", ".join(words)


def table(results: dict[str, list[Round]], says: dict[str, str]) -> Table:
    """A row for each group."""
    num_rounds = min(map(len, results.values()))
    title = f"before: {says['before']}, after: {says['after']}; ratios: after / before; rounds: {num_rounds}"
    made = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("\ngroup", no_wrap=True)
    for heads in (("windows/s\nbefore", "\nafter"), ("CPU s/1000\nbefore", "\nafter")):
        for head in (*heads, "ratio,\nmedian", "\nquartiles"):
            made.add_column(head, justify="right", no_wrap=True)
    made.add_column("\nverdict")
    for name, rounds in results.items():
        ratios, cells = ratios_of(rounds), [name]
        for key, form in KEYS.items():
            low, middle, high = np.percentile(ratios[key], (25, 50, 75))
            cells += [f"{np.median([turn[key] for each in rounds for turn in each[side]]):{form}}" for side in SIDES]
            cells += [f"{middle:.3f}", f"{low:.3f}-{high:.3f}"]
        made.add_row(*cells, verdict(ratios))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", required=True, metavar="REV", help="a commit, or the folder of a checkout")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of processes of each group")
    parser.add_argument("--seconds", type=float, default=2.0, help="CPU time of each process, over its turns")
    parser.add_argument("--minutes", type=float, default=12.0, help="no round begins that would not end within them")
    parser.add_argument("--groups", default=",".join(GROUPS), help=f"of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--windows", type=int, help="of each dataset, for a quick look; by default as `make bench`")
    parser.add_argument(
        "--source", type=Path, default=ROOT / "examples" / "data" / "aloha", help="ALOHA episodes with JPEG cameras"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="where all figures are written")
    arguments = parser.parse_args()
    names = arguments.groups.split(",")
    if unknown := sorted(set(names) - set(GROUPS)):
        parser.error(f"--groups: {', '.join(unknown)}, wanted some of {', '.join(GROUPS)}.")
    began, loads = time.monotonic(), [os.getloadavg()[0]]
    results: dict[str, list[Round]] = {name: [] for name in names}
    with TemporaryDirectory(prefix="epistream-compare-") as folder:
        data, sites = Path(folder), {side: Path(folder, side) for side in SIDES}
        says = {"before": stage(arguments.before, sites["before"]), "after": stage(str(ROOT), sites["after"])}
        for scenario in sorted({GROUPS[name].scenario for name in names}):
            num_steps, source = arguments.windows or SCENARIOS[scenario].num_steps, str(arguments.source.resolve())
            what = {"scenario": scenario, "num_steps": num_steps, "source": source, "data": folder}
            with Side(sites["before"], "write", **what) as writer:
                writer.wait()
                writer.do()
        order = cycle((*SIDES, *reversed(SIDES)))
        for number in range(1, arguments.rounds + 1):
            round_began = time.monotonic()
            for name in names:
                results[name].append(measure(GROUPS[name], sites, data, arguments.seconds, order))
            loads.append(os.getloadavg()[0])
            now = time.monotonic()
            print(f"round {number} of {arguments.rounds}: {now - began:.0f} s, load {loads[-1]:.1f}", file=sys.stderr)
            if now - began + now - round_began > 60 * arguments.minutes:
                break
    console = Console()
    console.width = max(console.width, _WIDTH)
    console.print(table(results, says))
    if arguments.json:
        ratios = {name: ratios_of(rounds) for name, rounds in results.items()}
        report = {"machine": machine(loads), "sides": says, "ratios": ratios, "rounds": results}
        arguments.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
