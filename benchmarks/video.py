"""Video beside JPEG, and windows by blocks beside windows at random: whole loaders, interleaved, as ratios in one run.

    python benchmarks/video.py [--episodes FOLDER] [--copies 8] [--rounds 5] [--cases blocks]

Episodes (ALOHA as recorded, JPEG) are packed as they are and as H.264 with groups of 2, 8 and 30. Each measurement is a
process of its own: two cameras, batch 32, two workers, everything in the page cache, windows/s of the second epoch, all
of it, so that a pool that fills is part of it. A ratio is that of a case to the case it names as its base, in the same
round; printed are the median and the spread of them, CPU seconds per 1,000 windows, and the time to the first batch.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKED = {
    "jpeg": [],
    "g2": ["--codec", "h264", "--gop", "2"],
    "g8": ["--codec", "h264", "--gop", "8"],
    "g30": ["--codec", "h264", "--gop", "30"],
}
CAMERAS = ("observation.images.top", "observation.images.angle")


class Case(NamedTuple):
    """What to stream: shards, observation steps, options of the order, and whether frames are kept."""

    shards: str
    num_obs: int
    order: dict[str, Any]
    decode: str = "auto"
    base: str = ""
    epochs: int = 2


def blocks(steps: int, pool: int) -> dict[str, Any]:
    """An order by blocks."""
    return {"by": "blocks", "block_steps": steps, "pool_blocks": pool}


RANDOM = {"by": "windows"}
CASES = {
    "jpeg, random": Case("jpeg", 1, RANDOM, "per_read"),
    "jpeg, random, 2 steps": Case("jpeg", 2, RANDOM, "per_read"),
    "jpeg, random, 4 steps": Case("jpeg", 4, RANDOM, "per_read"),
    "g=2, random": Case("g2", 1, RANDOM, "per_read", "jpeg, random"),
    "g=8, random": Case("g8", 1, RANDOM, "per_read", "jpeg, random"),
    "g=30, random": Case("g30", 1, RANDOM, "per_read", "jpeg, random"),
    "jpeg, blocks of 32": Case("jpeg", 1, blocks(32, 64), base="jpeg, random"),
    "jpeg, blocks of 32, 2 steps": Case("jpeg", 2, blocks(32, 64), base="jpeg, random, 2 steps"),
    "jpeg, blocks of 32, 4 steps": Case("jpeg", 4, blocks(32, 64), base="jpeg, random, 4 steps"),
    "g=8, blocks of 8": Case("g8", 1, blocks(8, 128), base="jpeg, random"),
    "g=30, blocks of 30": Case("g30", 1, blocks(30, 64), base="jpeg, random"),
    "g=8, blocks of 32, 2 steps": Case("g8", 2, blocks(32, 64), base="jpeg, random, 2 steps"),
    "g=8, blocks of 32, 4 steps": Case("g8", 4, blocks(32, 64), base="jpeg, random, 4 steps"),
    "few: jpeg, once": Case("few-jpeg", 1, RANDOM, "once", epochs=4),
    "few: g=30, once": Case("few-g30", 1, RANDOM, "once", "few: jpeg, once", epochs=4),
}


def program(folder: str, case: Case) -> None:
    """What a user's program does; prints what it took."""
    import epistream as es

    window = es.Window(obs=range(1 - case.num_obs, 1), action=range(100))
    features = [*CAMERAS, "observation.state", "action"]
    stream = es.EpisodeStream(
        str(Path(folder) / case.shards),
        batch_size=32,
        window=window,
        features=features,
        decode=case.decode,
        order=es.OrderOptions(**case.order),
        cache=es.CacheOptions(directory=f"/dev/shm/epistream-video-{os.getpid()}", budget_bytes="9GiB"),
    )
    began, first_s, num_windows, start, cpu_s = time.monotonic(), 0.0, 0, 0.0, 0.0
    with es.StreamingLoader(stream, num_workers=2) as loader:
        for _ in range(case.epochs):
            num_windows, start, cpu_s = 0, time.monotonic(), _cpu_s()
            for batch in loader:
                del batch
                num_windows += 32
                first_s = first_s or time.monotonic() - began
        taken_s, used_s = time.monotonic() - start, _cpu_s() - cpu_s
    print(json.dumps({"rate": num_windows / taken_s, "cpu_s": 1000 * used_s / num_windows, "first_s": first_s}))


def _cpu_s() -> float:
    """CPU seconds of this process and of its living children."""
    ticks = sum(os.times()[:2]) * os.sysconf("SC_CLK_TCK")
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def prepare(folder: Path, episodes: Path, copies: int) -> None:
    """Pack the episodes, some times over under other names, in all ways; a fourth of them as "few"."""
    sources = sorted(episodes.glob("*.hdf5"))
    copied = folder / "episodes"
    copied.mkdir()
    for number in range(copies):
        for source in sources:
            shutil.copyfile(source, copied / f"{source.stem}_{number:02d}.hdf5")  # one file is packed once
    files = sorted(map(str, copied.glob("*.hdf5")))
    for name, options in PACKED.items():
        pack = [sys.executable, "-m", "epistream", "pack", "--workers", "2", "--shard-size", "16MiB", *options]
        subprocess.run([*pack, *files, str(folder / name)], check=True, stdout=subprocess.DEVNULL)
        if name in ("jpeg", "g30"):
            few = files[: max(1, len(files) // 4)]
            subprocess.run([*pack, *few, str(folder / f"few-{name}")], check=True, stdout=subprocess.DEVNULL)
        print(name, sum(path.stat().st_size for path in (folder / name).glob("*.tar")), "bytes", flush=True)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--episodes", type=Path, default=ROOT / "examples/data/aloha")
    parser.add_argument("--copies", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", default="", help="Only those whose names hold this, with their bases.")
    parser.add_argument("--program", nargs=2, metavar=("FOLDER", "CASE"))
    options = parser.parse_args()
    if options.program:
        folder, name = options.program
        program(folder, CASES[name])
        return
    wanted = [name for name in CASES if options.cases in name]
    wanted = [name for name in CASES if name in wanted or any(CASES[each].base == name for each in wanted)]
    folder = Path(tempfile.mkdtemp(prefix="video-bench-"))
    try:
        prepare(folder, options.episodes, options.copies)
        rounds = [_round(folder, wanted, number) for number in range(options.rounds)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    _show(wanted, rounds)


def _round(folder: Path, wanted: list[str], number: int) -> dict[str, dict[str, float]]:
    found = {}
    for name in wanted[:: 1 if number % 2 == 0 else -1]:
        command = [sys.executable, __file__, "--program", str(folder), name]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=600)
        if done.returncode:
            raise SystemExit(f"{name}\n{done.stderr}")
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(f"round {number}: {name:30} {found[name]['rate']:8.0f} windows/s", flush=True)
    return found


def _show(wanted: list[str], rounds: list[dict[str, dict[str, float]]]) -> None:
    print(f"\n{'case':30} {'windows/s':>10} {'x base':>7} {'spread':>13} {'CPU s':>6} {'first s':>8}  base")
    for name in wanted:
        median = {key: statistics.median(each[name][key] for each in rounds) for key in ("rate", "cpu_s", "first_s")}
        base = CASES[name].base
        ratios = sorted(each[name]["rate"] / each[base]["rate"] for each in rounds) if base else [1.0]
        print(
            f"{name:30} {median['rate']:10,.0f} {statistics.median(ratios):7.2f} "
            f"{ratios[0]:6.2f}-{ratios[-1]:<6.2f} {median['cpu_s']:6.2f} {median['first_s']:8.2f}  {base}"
        )


if __name__ == "__main__":
    main()
