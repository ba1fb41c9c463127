"""The comparison: every loader on every scenario, interleaved, each measurement in a fresh process.

    python -m peers.run --source EPISODES --data FOLDER [--rounds 5] [--seconds 3] [--scenarios A,B]

Run it in the folder `benchmarks`; `make bench` does. Writes RESULTS.md, results.json and results.png there.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import psutil
from peers.contenders import CONTENDERS, Contender
from peers.data import SCENARIOS, Scenario
from peers.report import write_report

HERE = Path(__file__).resolve().parent.parent
_TIMEOUT_S = 240
PACKAGES = (
    "epistream",
    "torch",
    "numpy",
    "simplejpeg",
    "webdataset",
    "mosaicml-streaming",
    "litdata",
    "h5py",
    "robomimic",
)

Figures = dict[str, list[dict[str, float]]]


def folder_of(contender: Contender, scenario: Scenario, data: Path) -> Path:
    """Where its files are; ours and h5py's lie side by side."""
    return data / scenario.name / contender.form


def prepare(scenario: Scenario, source: Path, data: Path, errors: dict[str, str]) -> list[Contender]:
    """Write what is missing, each format in a process of its own; the contenders that can run."""
    able = []
    for contender in CONTENDERS:
        if not contender.fits(scenario):
            continue
        code = (
            "import sys; from pathlib import Path; from peers.writers import prepare; "
            "from peers.data import SCENARIOS; "
            "prepare(sys.argv[1], SCENARIOS[sys.argv[2]], Path(sys.argv[3]), Path(sys.argv[4]))"
        )
        command = [sys.executable, "-c", code, contender.form, scenario.name, str(source), str(data)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False)
        if done.returncode == 0:
            able.append(contender)
        else:
            errors[contender.name] = done.stderr.strip().splitlines()[-1][:200]
    return able


def measure(scenario: Scenario, name: str, folder: Path, seconds: float) -> dict[str, float] | str:
    """Figures of one run, or why there are none."""
    command = [sys.executable, "-m", "peers.one", scenario.name, name, str(folder), "--seconds", str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"no result within {_TIMEOUT_S} s"
    for line in done.stdout.splitlines():
        if line.startswith("RESULT "):
            found: dict[str, float] = json.loads(line.removeprefix("RESULT "))
            return found
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200]


def run_scenario(scenario: Scenario, arguments: argparse.Namespace, loads: list[float]) -> dict[str, Any]:
    """All rounds of one scenario."""
    errors: dict[str, str] = {}
    contenders = prepare(scenario, arguments.source, arguments.data, errors)
    figures: Figures = {"bound": [], **{contender.name: [] for contender in contenders}}
    ours = arguments.data / scenario.name / "epistream"
    for number in range(arguments.rounds):
        for name, folder in [("bound", ours), *((c.name, folder_of(c, scenario, arguments.data)) for c in contenders)]:
            if name in errors:
                continue
            loads.append(os.getloadavg()[0])
            found = measure(scenario, name, folder, arguments.seconds)
            if isinstance(found, str):
                errors[name] = found
            else:
                figures[name].append(found)
        print(f"{scenario.name}: round {number + 1} of {arguments.rounds}", flush=True)
    full = {name: rows for name, rows in figures.items() if len(rows) == arguments.rounds}
    return {"figures": full, "errors": errors}


def machine(loads: list[float]) -> dict[str, Any]:
    """What the figures belong to."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return {
        "cpu": f"{os.cpu_count()} cores, {model}",
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load": [round(min(loads), 1), round(max(loads), 1)],
        "versions": versions,
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=HERE.parent / "examples" / "data" / "aloha")
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--scenarios", default=",".join(SCENARIOS))
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    arguments.source, arguments.data = arguments.source.resolve(), arguments.data.resolve()
    began, loads = time.time(), [os.getloadavg()[0]]
    results: dict[str, Any] = {}
    for name in arguments.scenarios.split(","):
        results[name] = run_scenario(SCENARIOS[name], arguments, loads)
        report = {
            "machine": machine(loads),
            "rounds": arguments.rounds,
            "seconds": arguments.seconds,
            "minutes": round((time.time() - began) / 60),
            "scenarios": results,
        }
        (arguments.out / "results.json").write_text(json.dumps(report, indent=1))
        write_report(report, arguments.out)


if __name__ == "__main__":
    main()
