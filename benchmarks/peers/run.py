"""The comparison: every loader on every scenario, interleaved, each measurement in fresh processes.

    python -m peers.run --source EPISODES --data FOLDER [--rounds 3] [--seconds 2] [--minutes 20] [--groups A;B]

Run it in the folder `benchmarks`; `make bench` does. Writes RESULTS.md, results.json and results.png there. A group
gets fewer rounds than asked for where its share of the minutes is used up, and at least one.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from peers.contender import Contender
from peers.contenders import contender_of
from peers.data import Scenario
from peers.groups import BOUND, FLOOR, GROUPS, Group
from peers.machine import machine
from peers.report import write_report

HERE = Path(__file__).resolve().parent.parent
_TIMEOUT_S = 120


def prepare(group: Group, source: Path, data: Path, errors: dict[str, str]) -> list[Contender]:
    """Write the files that are missing, each format in a process of its own; the contenders that can run."""
    able = []
    for contender in group.contenders():
        code = (
            "import sys; from pathlib import Path; from peers.writers import prepare; "
            "from peers.data import SCENARIOS; "
            "prepare(sys.argv[1], SCENARIOS[sys.argv[2]], Path(sys.argv[3]), Path(sys.argv[4]))"
        )
        scenario = contender.stored(group.scenario)
        if not (folder_of(contender, scenario, data) / "COMPLETE.json").exists():
            command = [sys.executable, "-c", code, contender.form, scenario.name, str(source), str(data)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, check=False)
            if done.returncode:
                errors[contender.name] = done.stderr.strip().splitlines()[-1][:200]
                continue
        able.append(contender)
    return able


def folder_of(contender: Contender, scenario: Scenario, data: Path) -> Path:
    """Where its files are; ours and h5py's lie side by side."""
    return data / scenario.name / contender.form


def measure(group: Group, name: str, arguments: argparse.Namespace) -> dict[str, float] | str:
    """Figures of one run over all its ranks, or why there are none."""
    scenario, form = group.scenario, "epistream"
    if name not in (BOUND, FLOOR):
        contender = contender_of(name)
        scenario, form = contender.stored(scenario), contender.form
    folder = arguments.data / scenario.name / form
    command = [sys.executable, "-m", "peers.one", scenario.name, name, str(folder), "--seconds", str(arguments.seconds)]
    command += ["--cold"] if group.is_cold else []
    ranks = [
        subprocess.Popen(
            command,
            cwd=HERE,
            env={**os.environ, **_environment(rank, group.num_ranks, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        for port in [_free_port()]
        for rank in range(group.num_ranks)
    ]
    deadline = time.monotonic() + _TIMEOUT_S
    try:
        ends = [rank.communicate(timeout=max(1.0, deadline - time.monotonic())) for rank in ranks]
    except subprocess.TimeoutExpired:
        return f"no result within {_TIMEOUT_S} s"
    finally:
        for rank in ranks:
            with suppress(ProcessLookupError):
                os.killpg(rank.pid, signal.SIGKILL)
            rank.wait()
    found = []
    for (out, problems), rank in zip(ends, ranks, strict=True):
        lines = [line for line in out.splitlines() if line.startswith("RESULT ")]
        if not lines:
            return (problems.strip().splitlines() or [f"exit code {rank.returncode}"])[-1][:200]
        found.append(json.loads(lines[0].removeprefix("RESULT ")))
    return combined(found)


def combined(ranks: list[dict[str, float]]) -> dict[str, float]:
    """One set of figures for all ranks: their rates and own memory add up, the last one's first batch counts."""
    if "windows_per_s" not in ranks[0]:
        return ranks[0]
    rate = sum(rank["windows_per_s"] for rank in ranks)
    work = sum(rank["cpu_s_per_1000"] * rank["windows_per_s"] for rank in ranks)
    own, shared = sum(rank["own_mib"] for rank in ranks), max(rank["shared_mib"] for rank in ranks)
    return {
        "windows_per_s": rate,
        "cpu_s_per_1000": work / rate if rate else 0.0,
        "first_batch_s": max(rank["first_batch_s"] for rank in ranks),
        "memory_mib": own + shared,
        "own_mib": own,
        "shared_mib": shared,
        "num_processes": sum(rank["num_processes"] for rank in ranks),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """As torchrun sets it."""
    common = {"OMP_NUM_THREADS": "1", "LITDATA_DISABLE_VERSION_CHECK": "1", "GLOO_SOCKET_IFNAME": "lo"}
    common["HF_HUB_OFFLINE"] = "1"  # the data are here
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks}
    if num_ranks == 1:
        return common
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return {**common, **address, **{name: str(value) for name, value in names.items()}}


def run_group(group: Group, arguments: argparse.Namespace, deadline: float, loads: list[float]) -> dict[str, Any]:
    """As many rounds as fit before the deadline, at most those asked for, at least one."""
    errors: dict[str, str] = {}
    names = [*group.extra(), *(c.name for c in prepare(group, arguments.source, arguments.data, errors))]
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    num_rounds = 0
    round_s = 0.0
    while num_rounds < arguments.rounds and (not num_rounds or time.monotonic() + round_s < deadline):
        began = time.monotonic()
        for name in names:
            if name in errors:
                continue
            loads.append(os.getloadavg()[0])
            found = measure(group, name, arguments)
            if isinstance(found, str):
                errors[name] = found
            else:
                figures[name].append(found)
        num_rounds, round_s = num_rounds + 1, time.monotonic() - began
        print(f"{group.name}: round {num_rounds} of {arguments.rounds}, {round_s:.0f} s", flush=True)
    full = {name: rows for name, rows in figures.items() if len(rows) == num_rounds}
    return {"figures": full, "errors": errors, "rounds": num_rounds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=HERE.parent / "examples" / "data" / "aloha")
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument(
        "--minutes", type=float, default=20.0, help="for all measuring; preparing the files comes on top"
    )
    parser.add_argument("--groups", default=";".join(group.name for group in GROUPS), help="separated by ;")
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    arguments.source, arguments.data = arguments.source.resolve(), arguments.data.resolve()
    groups = [group for group in GROUPS if group.name in arguments.groups.split(";")]
    began, loads = time.monotonic(), [os.getloadavg()[0]]
    weights = [len(group.contenders()) + len(group.extra()) for group in groups]
    results: dict[str, Any] = {}
    for number, group in enumerate(groups):
        deadline = began + arguments.minutes * 60 * sum(weights[: number + 1]) / sum(weights)
        results[group.name] = run_group(group, arguments, deadline, loads)
        report = {
            "machine": machine(loads),
            "seconds": arguments.seconds,
            "minutes": round((time.monotonic() - began) / 60),
            "groups": results,
        }
        (arguments.out / "results.json").write_text(json.dumps(report, indent=1) + "\n")
        write_report(report, arguments.out)


if __name__ == "__main__":
    main()
