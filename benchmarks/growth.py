"""How cost grows with the work, and what neighbours on a node suffer: an earlier commit beside this checkout.

    python benchmarks/growth.py [--before REV] [--rounds 3] [--groups fills,decode] [--episodes 1000] [--out FOLDER]

`make bench-growth` does. Every figure comes from a process of its own (`growth_cases.py`), before and after in turns,
and is the median of the rounds; costs are CPU seconds, which a busy machine changes least. Data are made in a temporary
folder from the example episodes: many short ones with small pictures, where what is done for each episode, entry and
dataset is all that counts. Each side packs and reads its own. Writes GROWTH.md and growth.json.
"""

import argparse
import io
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
from before_after import stage
from peers.machine import machine
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
_STEPS, _SIDE = 20, 64
_PATIENCE_S = 1800

Figures = dict[str, float]
# A row of the table: what, the figure of a side, and what it should be.
Row = tuple[str, float | None, str]


def write_episodes(out: Path, count: int) -> None:
    """Short ACT episodes: real arrays and pictures of the examples, cut, shrunk and changed."""
    out.mkdir(parents=True)
    with h5py.File(ROOT / "examples" / "data" / "aloha" / "episode_0.hdf5") as file:
        qpos, qvel, action = (file[name][()] for name in ("observations/qpos", "observations/qvel", "action"))
        lengths = file["compress_len"][1].astype(int)
        pictures = [
            _shrunk(row[:length].tobytes())
            for row, length in zip(file["observations/images/top"], lengths, strict=True)
        ]
    width = max(map(len, pictures))
    random = np.random.default_rng(0)
    for number in range(count):
        steps = (np.arange(_STEPS) + random.integers(len(action))) % len(action)
        chosen = random.integers(len(pictures), size=_STEPS)
        block = np.zeros((_STEPS, width), np.uint8)
        for row, which in zip(block, chosen, strict=True):
            row[: len(pictures[which])] = pictures[which]
        with h5py.File(out / f"episode_{number}.hdf5", "w") as file:
            file.attrs.update(sim=True, compress=True)
            file["observations/qpos"] = qpos[steps] + random.normal(0, 0.01, qpos.shape[1])
            file["observations/qvel"] = qvel[steps]
            file["action"] = action[steps] + 1e-6 * number
            file.create_dataset("observations/images/top", data=block, chunks=(1, width))
            file["compress_len"] = np.array([[len(pictures[which]) for which in chosen]], np.float32)


def _shrunk(picture: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    file = io.BytesIO()
    Image.open(io.BytesIO(picture)).resize((_SIDE, _SIDE)).save(file, "JPEG", quality=70)
    return np.frombuffer(file.getvalue(), np.uint8)


@dataclass
class Side:
    """One side: its code, its data, and the figures that were found, by case."""

    site: Path
    data: Path
    found: dict[str, list[Figures]] = field(default_factory=dict)

    def start(self, case: str, **arguments: Any) -> "subprocess.Popen[str]":
        """The process of a case."""
        paths = [str(self.site), str(ROOT / "benchmarks")]
        return subprocess.Popen(
            [sys.executable, str(ROOT / "benchmarks" / "growth_cases.py"), case, json.dumps(arguments)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, name: str, case: str, **arguments: Any) -> None:
        """Run a case once, and keep its figures under a name; none if it fails or takes too long, which is said."""
        process = self.start(case, **arguments)
        try:
            text, _ = process.communicate(timeout=_PATIENCE_S)
            self.found.setdefault(name, []).append(json.loads(text))
        except (subprocess.TimeoutExpired, ValueError) as error:
            print(f"{self.site.name}, {name}: {type(error).__name__}", file=sys.stderr)
        finally:
            kill(process)

    def figure(self, name: str, key: str) -> float | None:
        """The median of a figure; None if it was not found."""
        values = [figures[key] for figures in self.found.get(name, ()) if key in figures]
        return statistics.median(values) if values else None

    def ratio(self, one: tuple[str, str], other: tuple[str, str]) -> float | None:
        """One figure over another."""
        above, below = self.figure(*one), self.figure(*other)
        return None if above is None or not below else above / below


def kill(process: "subprocess.Popen[str]") -> None:
    """End a process and its children."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Data:
    """What both sides are measured with: raw episodes, and each side's own packed ones."""

    def __init__(self, folder: Path, sides: Mapping[str, Side], episodes: int) -> None:
        self.episodes = episodes
        self.raw = folder / "raw"
        write_episodes(self.raw / "all", episodes)
        write_episodes(self.raw / "few", 100)
        for side in sides.values():
            for name, size in (("all", "4MiB"), ("few", "128MiB")):
                side.run("packed", "pack", source=str(self.raw / name), out=str(side.data / name), shard_size=size)
            for number in range(50):
                shutil.copytree(side.data / "few", side.data / "many" / str(number))


# --- groups: what is run in each round, and the rows that come of it -------------------------------------------------


def run_fills(side: Side, data: Data) -> None:
    for entries in (100, 1_000, 10_000):
        side.run(f"fills {entries}", "fills", entries=entries)


def rows_fills(side: Side) -> Iterator[Row]:
    for entries in (100, 1_000, 10_000):
        yield f"one fill at {entries:,} entries, CPU ms", side.figure(f"fills {entries}", "cpu_ms"), ""
    yield "10,000 entries / 100", side.ratio(("fills 10000", "cpu_ms"), ("fills 100", "cpu_ms")), "<= 1.5"


DECODES = {
    "per_read": ("per_read", None),
    "once, 25 %": ("once", 0.25),
    "once, 75 %": ("once", 0.75),
    "once, 100 %": ("once", 1.0),
    "default": ("auto", None),
}


def run_decode(side: Side, data: Data) -> None:
    for name, (mode, share) in DECODES.items():
        side.run(name, "decode", dataset=str(side.data / "all"), mode=mode, share=share, epochs=3)


def rows_decode(side: Side) -> Iterator[Row]:
    base = ("per_read", "epoch_2")
    for name in list(DECODES)[1:]:
        first, third = ("<= 1.2", "< 1") if name == "default" else ("<= 1.1", "<= 1.1")
        yield f"{name}: first epoch / per_read", side.ratio((name, "epoch_1"), ("per_read", "epoch_1")), first
        yield f"{name}: third epoch / per_read", side.ratio((name, "epoch_3"), base), third
    none, some, all_ = (side.figure(*where) for where in (base, ("once, 75 %", "epoch_3"), ("once, 100 %", "epoch_3")))
    if none and some and all_:
        yield "75 %: part of the way from none to all", (none - some) / (none - all_), ">= 0.5"


def run_jobs(side: Side, data: Data) -> None:
    datasets = [str(side.data / "all"), str(side.data / "few")]
    for decode in ("per_read", "auto"):
        side.run(f"jobs {decode}", "two_jobs", datasets=datasets, room=0.95, decode=decode, epochs=4)


def rows_jobs(side: Side) -> Iterator[Row]:
    for job in range(2):
        speed = side.ratio(("jobs per_read", f"job_{job}"), ("jobs auto", f"job_{job}"))
        yield f"two jobs that do not fit: job {job + 1}, windows per CPU s / per_read", speed, ">= 0.9"
    yield "their evictions in 4 epochs", side.figure("jobs auto", "evictions"), "0"


def run_manifest(side: Side, data: Data) -> None:
    for episodes in (10_000, 100_000, 1_000_000):
        out = side.data / f"manifest-{episodes}"
        if not out.exists():
            side.run("written", "write_manifest", like=str(side.data / "few"), out=str(out), episodes=episodes)
        side.run(f"open {episodes}", "open_dataset", url=str(out), warm=str(side.data / "few"))


def rows_manifest(side: Side) -> Iterator[Row]:
    for episodes in (10_000, 100_000, 1_000_000):
        wanted = episodes == 1_000_000
        yield f"open {episodes:,} episodes, CPU s", side.figure(f"open {episodes}", "cpu_s"), "< 0.3" if wanted else ""
        yield f"open {episodes:,} episodes, MB", side.figure(f"open {episodes}", "mb"), "< 100" if wanted else ""


def run_resume(side: Side, data: Data) -> None:
    whole = side.data / "whole"
    shutil.rmtree(whole, ignore_errors=True)
    side.run("whole", "pack", source=str(data.raw / "all"), out=str(whole))
    num_shards = len(list(whole.glob("*.tar")))
    for percent in (50, 99):
        out = side.data / f"resumed-{percent}"
        shutil.rmtree(out, ignore_errors=True)
        _pack_and_kill(side, data.raw / "all", out, num_shards * percent // 100)
        side.run(f"resume {percent}", "pack", source=str(data.raw / "all"), out=str(out))


def _pack_and_kill(side: Side, source: Path, out: Path, num_shards: int) -> None:
    process = side.start("pack", source=str(source), out=str(out))
    while process.poll() is None and len(list(out.rglob("*.index"))) < num_shards:
        time.sleep(0.005)
    kill(process)


def rows_resume(side: Side) -> Iterator[Row]:
    for percent, wanted in ((50, ""), (99, "<= 0.1")):
        for key, name in (("cpu_s", "CPU"), ("bytes_read", "bytes read")):
            part = side.ratio((f"resume {percent}", key), ("whole", key))
            yield f"resume at {percent} %: {name} / whole", part, wanted


def run_network(side: Side, data: Data) -> None:
    for copies in (11, 110):
        source = str(ROOT / "examples" / "data" / "aloha")
        side.run(f"network {copies}", "cold_epoch", source=source, copies=copies, ranks=4)


def rows_network(side: Side) -> Iterator[Row]:
    for copies, size in ((11, "40 MB"), (110, "400 MB")):
        yield f"{size} over HTTP, 4 ranks x 2: epoch 1 / data", side.figure(f"network {copies}", "epoch_1"), "1.00-1.01"
        yield f"{size} over HTTP, 4 ranks x 2: epoch 2 / data", side.figure(f"network {copies}", "epoch_2"), "0"


def run_readers(side: Side, data: Data) -> None:
    side.run("readers", "waiters", readers=64, seconds=3.0)


def rows_readers(side: Side) -> Iterator[Row]:
    yield "64 readers of one entry: fills", side.figure("readers", "fills"), "1"
    yield "64 readers of one entry: cores burnt by waiting", side.figure("readers", "cores"), ""


def run_mixture(side: Side, data: Data) -> None:
    for number in (1, 50):
        datasets = [str(side.data / "many" / str(each)) for each in range(number)]
        side.run(f"mixture {number}", "mixture", datasets=datasets)


def rows_mixture(side: Side) -> Iterator[Row]:
    for when, name in (("first", "its first 1,600 windows"), ("later", "the next 1,600")):
        share = side.ratio(("mixture 50", f"{when}_cpu_ms"), ("mixture 1", f"{when}_cpu_ms"))
        yield f"mixture of 50: CPU a window / of one, {name}", share, "<= 1.5" if when == "later" else ""
    yield "mixture of 50: descriptors", side.figure("mixture 50", "descriptors"), "<= 200"
    yield "mixture of 50: bytes of state", side.figure("mixture 50", "state_bytes"), "<= 5,000"


GROUPS: dict[str, tuple[Callable[[Side, Data], None], Callable[[Side], Iterator[Row]]]] = {
    "fills": (run_fills, rows_fills),
    "decode": (run_decode, rows_decode),
    "jobs": (run_jobs, rows_jobs),
    "manifest": (run_manifest, rows_manifest),
    "resume": (run_resume, rows_resume),
    "network": (run_network, rows_network),
    "readers": (run_readers, rows_readers),
    "mixture": (run_mixture, rows_mixture),
}


def page(sides: Mapping[str, Side], names: Mapping[str, str], groups: list[str], about: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        "# Growth",
        "",
        f"Written by `make bench-growth`: medians of {about['rounds']} rounds, {about['episodes']:,} episodes of "
        f"{_STEPS} steps with one {_SIDE}x{_SIDE} camera. Machine: {about['cpu']}, {about['memory_gib']} GiB, Linux "
        f"{about['kernel']}, Python {about['python']}, {about['date']}.",
        "",
        f"| | {' | '.join(f'{side} ({names[side]})' for side in sides)} | wanted |",
        f"| --- |{' ---: |' * len(sides)} ---: |",
    ]
    for group in groups:
        for cells in zip(*(GROUPS[group][1](side) for side in sides.values()), strict=True):
            values = " | ".join("failed" if value is None else f"{value:,.3g}" for _, value, _ in cells)
            lines.append(f"| {cells[0][0]} | {values} | {cells[0][2]} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="REV", help="a commit, or the folder of a checkout; none if left out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--episodes", type=int, default=1000, help="of the larger dataset")
    parser.add_argument("--groups", default=",".join(GROUPS), help=f"of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks", help="folder of GROWTH.md and growth.json")
    arguments = parser.parse_args()
    groups = arguments.groups.split(",")
    if unknown := sorted(set(groups) - set(GROUPS)):
        parser.error(f"--groups: {', '.join(unknown)}, wanted some of {', '.join(GROUPS)}.")
    loads = [os.getloadavg()[0]]
    with TemporaryDirectory(prefix="epistream-growth-") as folder:
        sources = {"before": arguments.before, "after": str(ROOT)}
        sides, names = {}, {}
        for name, source in sources.items():
            if source is not None:
                names[name] = stage(source, Path(folder, name, "site"))
                sides[name] = Side(Path(folder, name, "site"), Path(folder, name, "data"))
        data = Data(Path(folder), sides, arguments.episodes)
        for number in range(1, arguments.rounds + 1):
            for group in groups:
                for side in list(sides.values())[:: 1 if number % 2 else -1]:
                    GROUPS[group][0](side, data)
            loads.append(os.getloadavg()[0])
            print(f"round {number} of {arguments.rounds}, load {loads[-1]:.1f}", file=sys.stderr)
    about = {**machine(loads), "rounds": arguments.rounds, "episodes": arguments.episodes}
    text = page(sides, names, groups, about)
    print(text)
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "GROWTH.md").write_text(text)
    found = {name: {"commit": names[name], "figures": side.found} for name, side in sides.items()}
    (arguments.out / "growth.json").write_text(json.dumps({"machine": about, "sides": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
