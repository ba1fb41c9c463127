"""Reads items of a data set by LeRobot's own reader, and its statistics, into an .npz (see `items.py`).

    python benchmarks/lerobot/read_items.py ROOT OUT.npz [--deltas '{"action": [0, 1]}'] [--index 0,17] [--digests]

Run it in an environment of `requirements-v*.txt`, of the version that the data set has.
"""

import argparse
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import compat

compat.prepare()

import numpy as np  # noqa: E402
from items import Arrays, Deltas, flat_stats, seconds, stacked  # noqa: E402
from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402


def read(
    root: Path,
    deltas: Deltas,
    index: Sequence[int] | None = None,
    *,
    keys: Collection[str] | None = None,
    has_digests: bool = False,
) -> Arrays:
    """Items by their place in the whole data set, all without `index`, and statistics; of `keys` alone if given."""
    fps = json.loads((root / "meta" / "info.json").read_text())["fps"]
    # The name is looked up on the hub only where files are missing.
    data = LeRobotDataset("local/set", root=root, delta_timestamps=seconds(deltas, fps))
    chosen = range(len(data)) if index is None else index
    items = (data[at] for at in chosen)
    wanted = ({name: value for name, value in item.items() if keys is None or name in keys} for item in items)
    arrays = stacked(wanted, data.meta.camera_keys, has_digests=has_digests)
    arrays["deltas"] = np.array(json.dumps({name: list(steps) for name, steps in deltas.items()}))
    return {**arrays, **flat_stats(data.meta.stats)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--deltas", type=json.loads, default={}, help="steps by feature, as JSON")
    parser.add_argument("--index", help="places of items, separated by commas; all without")
    parser.add_argument("--digests", action="store_true", help="of pictures, their SHA-256 only")
    arguments = parser.parse_args()
    index = [int(at) for at in arguments.index.split(",")] if arguments.index else None
    arrays = read(arguments.root, arguments.deltas, index, has_digests=arguments.digests)
    np.savez_compressed(arguments.out, **arrays)
    print(f"{arguments.out}: {len(arrays['index'])} items")


if __name__ == "__main__":
    main()
