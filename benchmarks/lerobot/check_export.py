"""Has LeRobot read a data set, and compares all items and statistics with what they ought to be.

    python benchmarks/lerobot/check_export.py ROOT EXPECTED.npz [--statistics 1e-6] [--no-streaming]

EXPECTED.npz is in the form of `items.py`: what `read_items.py` wrote, or arrays from wherever the data came from. Keys
that it lacks are not compared. Prints "N items equal", or what differs and ends with 1. Run it in an environment of
`requirements-v*.txt`, of the version that the data set has. Data sets v3.0 are read by StreamingLeRobotDataset as well.
"""

import argparse
import sys
from pathlib import Path

import compat

compat.prepare()

import numpy as np  # noqa: E402
from items import Arrays, deltas_of, differences, item_keys, stacked, stats_differences  # noqa: E402
from lerobot.datasets.lerobot_dataset import CODEBASE_VERSION  # noqa: E402
from read_items import read  # noqa: E402


def check(root: Path, expected: Arrays, part: float) -> list[str]:
    """By LeRobotDataset: every item in its place, and the statistics."""
    wanted = {name: expected[name] for name in item_keys(expected)}
    found = read(root, deltas_of(expected), keys=wanted, has_digests=_has_digests(expected))
    problems = differences({name: found[name] for name in item_keys(found)}, wanted)
    stats = {name: value for name, value in expected.items() if name.startswith("stats/")}
    return problems + stats_differences(found, stats, part)


def _has_digests(expected: Arrays) -> bool:
    return any(value.dtype.kind == "S" for value in expected.values())


def check_streaming(root: Path, expected: Arrays) -> list[str]:
    """By StreamingLeRobotDataset: each item once, its present step.

    Its own ways are not compared: numbers are float64 where LeRobotDataset gives float32, pictures of Parquet stand
    channels last, and beyond an episode's ends it repeats other steps.
    """
    from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset

    data = StreamingLeRobotDataset("local/set", root=root, buffer_size=1, max_num_shards=1, shuffle=False)
    for name in data.meta.video_keys:
        if {(row[f"videos/{name}/chunk_index"], row[f"videos/{name}/file_index"]) for row in data.meta.episodes} != {
            (0, 0)
        }:
            print(f"{root}: StreamingLeRobotDataset takes all of {name} for one file, so it is not asked")
            return []
    compared = set(item_keys(expected)) - set(data.meta.image_keys)
    items = ({name: value for name, value in item.items() if name in compared} for item in data)
    found = stacked(items, data.meta.video_keys, has_digests=_has_digests(expected))
    order = np.argsort(found["index"])
    found = {name: values[order] for name, values in found.items()}
    wanted: Arrays = {}
    for name in compared & set(found):
        steps = deltas_of(expected).get(name)
        if steps is None or 0 in steps:
            wanted[name] = expected[name] if steps is None else expected[name][:, steps.index(0)]
            if wanted[name].dtype.kind == "f":
                found[name] = found[name].astype(wanted[name].dtype)
    return [f"streaming: {text}" for text in differences({name: found[name] for name in wanted}, wanted)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("expected", type=Path)
    parser.add_argument("--statistics", type=float, default=1e-6, help="how far they may be off, of their size or of 1")
    parser.add_argument("--no-streaming", action="store_true", help="LeRobotDataset only")
    arguments = parser.parse_args()
    with np.load(arguments.expected) as file:
        expected = dict(file)
    problems = check(arguments.root, expected, arguments.statistics)
    if CODEBASE_VERSION == "v3.0" and not arguments.no_streaming:
        problems += check_streaming(arguments.root, expected)
    for problem in problems:
        print(f"{arguments.root}: {problem}")
    if problems:
        sys.exit(1)
    print(f"{arguments.root}: {len(expected['index'])} items equal")


if __name__ == "__main__":
    main()
