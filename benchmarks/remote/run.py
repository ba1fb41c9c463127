"""Several ranks of one node over the same remote bytes, loader by loader: `make bench-remote`.

    python -m remote.run --source EPISODES --data FOLDER [--readers A,B] [--parts epochs,kill] [--rounds 3]

Run it in the folder `benchmarks`. Writes REMOTE.md and remote.json; readers that are left out keep their figures.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from peers.machine import machine
from peers.writers import prepare
from remote import epochs, kill
from remote.job import HERE, Served, serving
from remote.readers import BUCKET, READERS, SCENARIO
from remote.report import write_report

# Bytes a second and seconds before each answer: a good link, and one slow enough to be killed in the middle of.
LINKS = {"epochs": (100e6, 0.02), "kill": (20e6, 0.02)}


def write_stores(source: Path, data: Path, names: list[str]) -> Path:
    """Every form's files below one bucket, written once."""
    bucket = data / SCENARIO.name
    for form in {READERS[name].form for name in names}:
        prepare(form, SCENARIO, source, data)
    link = data / "served" / BUCKET
    if not link.exists():
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(bucket)
    return link


def apart(work: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Run it with a folder of its own that is deleted afterwards."""
    scratch = Path(tempfile.mkdtemp(prefix="bench-remote-"))
    shm = Path("/dev/shm") / f"bench-remote-{scratch.name}"
    names = set(Path("/dev/shm").iterdir())
    try:
        return work(scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(shm, ignore_errors=True)
        for path in set(Path("/dev/shm").iterdir()) - names:
            if kill.is_of_a_peer(path.name) and not _is_mapped(path):
                path.unlink(missing_ok=True)


def _is_mapped(path: Path) -> bool:
    """Whether a process, maybe of another job on this machine, has it mapped."""
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            if str(path) in maps.read_text():
                return True
    return False


def run(arguments: argparse.Namespace, report: dict[str, Any]) -> None:
    names = [name for name in arguments.readers.split(",") if name]
    bucket = write_stores(arguments.source, arguments.data, names)
    for part in arguments.parts.split(","):
        with serving(bucket, *LINKS[part]) as served:
            for name in names:
                found = _part(part, name, served, bucket, arguments.rounds)
                report["readers"].setdefault(name, {})[part] = found
                report |= {"machine": machine([]), "links": LINKS, "kill_at": kill.KILL_AT, "others_s": kill.OTHERS_S}
                (arguments.out / "remote.json").write_text(json.dumps(report, indent=1) + "\n")
                write_report(report, arguments.out / "REMOTE.md")
                print(f"{part}: {name}: {json.dumps(found)[:400]}", flush=True)


def _part(part: str, name: str, served: Served, bucket: Path, rounds: int) -> Any:
    if part == "kill":
        if name == "nothing":
            return {}
        ways = {whom: partial(kill.measure, name, served, bucket, whom=whom) for whom in ("rank", "main")}
        return {whom: apart(way) for whom, way in ways.items()}
    # The first round tells all; further ones only add first batches, by one epoch each.
    counts = [2] + [1] * (rounds - 1)
    found = [apart(partial(epochs.measure, name, served, bucket, num_epochs=count)) for count in counts]
    whole = next((one for one in found if "error" not in one), found[0])
    return {
        **whole,
        "first_batches_s": [one["first_batch_s"] for one in found if "first_batch_s" in one and "error" not in one],
        "errors": [one["error"] for one in found if "error" in one],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, default=HERE.parent / "examples" / "data" / "aloha")
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--parts", default="epochs,kill")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE)
    arguments = parser.parse_args()
    arguments.source, arguments.data = arguments.source.resolve(), arguments.data.resolve()
    arguments.data.mkdir(parents=True, exist_ok=True)
    earlier = arguments.out / "remote.json"
    report = json.loads(earlier.read_text()) if earlier.exists() else {"readers": {}}
    run(arguments, report)


if __name__ == "__main__":
    main()
