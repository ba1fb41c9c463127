"""LeRobot's own loaders beside epistream on the same LeRobot data set, interleaved, each measurement a fresh process.

    python benchmarks/lerobot/run.py ROOT --lerobot PYTHON [--lance PYTHON --lance-root COPY] [--rounds 5]

ROOT is a data set v3.0 (`join_copies.py` makes a bigger one of a small one). PYTHON is that of an environment of
`requirements-v30.txt`. Writes LEROBOT.md and lerobot.json beside this folder, or where --out says. Ratios are medians
of those within a round. A round opens the data set twice with each loader: with nothing kept for the user, and again.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import house
from loaders import LOADERS, Loader
from one import FLOOR
from peers.machine import machine
from table import write

HERE = Path(__file__).resolve().parent
_TIMEOUT_S = 300
_ASKED = ("lerobot", "torch", "torchcodec", "datasets", "av", "numpy", "lancedb", "lerobot-lancedb")


def start(python: str, arguments: list[str], cache: str) -> dict[str, Any] | str:
    """What a process found, or why there is nothing."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": cache}
    environment.pop("HF_HOME", None)
    process = subprocess.Popen(
        [python, str(HERE / "one.py"), *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, problems = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"no result within {_TIMEOUT_S} s"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
    if not lines:
        return (problems.strip().splitlines() or [f"exit code {process.returncode}"])[-1][:300]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("RESULT "))
    return found


def measure(loader: Loader, python: str, root: Path, seconds: float) -> dict[str, Any] | str:
    """Twice: with nothing kept from before, for the first batch alone, and again."""
    with tempfile.TemporaryDirectory() as cache:
        fresh = start(python, [loader.name, str(root)], cache)
        again = start(python, [loader.name, str(root), "--seconds", str(seconds)], cache)
    if isinstance(fresh, str) or isinstance(again, str):
        return fresh if isinstance(fresh, str) else str(again)
    return {**again, "fresh_first_batch_s": fresh["first_batch_s"]}


def versions(python: str) -> dict[str, str]:
    """Of the packages in another environment."""
    code = (
        "import importlib.metadata as m, json, sys\n"
        "found = {d.metadata['Name'].lower(): d.version for d in m.distributions() if d.metadata['Name']}\n"
        "print(json.dumps({name: found[name] for name in sys.argv[1:] if name in found}))"
    )
    done = subprocess.run([python, "-c", code, *_ASKED], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def rounds(arguments: argparse.Namespace, pythons: dict[str, str], loads: list[float]) -> dict[str, Any]:
    """Figures of every round, by loader, and why some have none."""
    figures: dict[str, list[Any]] = {FLOOR: []}
    errors = {}
    loaders = [loader for loader in LOADERS if not arguments.only or loader.name in arguments.only.split(";")]
    for loader in loaders:
        if loader.environment not in pythons:
            errors[loader.name] = "its environment was not given"
    for number in range(arguments.rounds):
        with tempfile.TemporaryDirectory() as cache:
            found = start(pythons["epistream"], [FLOOR, str(arguments.root)], cache)
        if isinstance(found, str):
            raise SystemExit(f"{FLOOR}: {found}")
        figures[FLOOR].append(found)
        for loader in loaders:
            if loader.name in errors:
                continue
            loads.append(os.getloadavg()[0])
            root = arguments.lance_root if loader.form == "lance" else arguments.root
            found = measure(loader, pythons[loader.environment], root, arguments.seconds)
            print(f"round {number + 1}, {loader.name}: {found}", flush=True)
            if isinstance(found, str):
                errors[loader.name] = found
                figures.pop(loader.name, None)
            else:
                figures.setdefault(loader.name, []).append(found)
    return {"figures": figures, "errors": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--lerobot", required=True, help="Python of LeRobot's environment")
    parser.add_argument("--lance", help="Python of lerobot-lancedb's environment")
    parser.add_argument("--lance-root", type=Path, help="the data set in its layout")
    parser.add_argument("--epistream", default=sys.executable, help="Python of epistream's environment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--only", help="names of loaders, separated by ;")
    parser.add_argument("--out", type=Path, default=house.BENCHMARKS)
    arguments = parser.parse_args()
    pythons = {"epistream": arguments.epistream, "lerobot": arguments.lerobot}
    if arguments.lance:
        pythons["lance"] = arguments.lance
    loads = [os.getloadavg()[0]]
    report = {
        **rounds(arguments, pythons, loads),
        "info": json.loads((arguments.root / "meta" / "info.json").read_text()),
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
        "machine": machine(loads),
        "versions": {name: versions(python) for name, python in pythons.items()},
    }
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "lerobot.json").write_text(json.dumps(report, indent=1) + "\n")
    write(report, arguments.out / "LEROBOT.md")


if __name__ == "__main__":
    main()
