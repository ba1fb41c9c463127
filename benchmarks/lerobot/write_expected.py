"""What epistream reads of any dataset, in the form of `items.py`: what LeRobot ought to find in an export of it.

    python benchmarks/lerobot/write_expected.py SOURCE OUT.npz --fps 50 [--deltas '{"action": [0, 1]}'] [--digests]
    epistream export lerobot SOURCE EXPORT
    PYTHON benchmarks/lerobot/check_export.py EXPORT OUT.npz

Cameras that an export encodes are no longer the source's: leave them out with --no-pictures, and let a second file, of
EXPORT itself, say what they are. Run it in epistream's environment.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from items import Arrays, digests, seconds

import epistream as es

Steps = dict[str, list[int]]


def expected(source: str, steps: Steps, fps: float, *, has_pictures: bool, has_digests: bool) -> Arrays:
    """Every step of a dataset in the order of its storage, and statistics of its numbers."""
    features = {
        name: feature
        for name, feature in es.open_dataset(source).features.items()
        if has_pictures or feature.kind != "frames"
    }
    stream = es.EpisodeStream(
        source,
        batch_size=16,
        features=list(features),
        delta_timestamps=seconds(steps, fps),
        sample_format=es.LeRobotFormat(images="uint8"),
        remainder="uneven",
    )
    parts: dict[str, list[np.ndarray]] = {}
    for batch in es.StreamingLoader(stream, num_workers=0):
        for name, value in batch.items():
            # The memory of a batch is used again.
            array = value.numpy().copy() if hasattr(value, "numpy") else np.array(value)
            if has_digests and name in features and features[name].kind == "frames":
                array = digests(array)
            parts.setdefault(name, []).append(array)
    joined = {name: np.concatenate(values) for name, values in parts.items()}
    order = np.argsort(joined["index"])
    arrays = {name: values[order] for name, values in joined.items()}
    numbers = {name: arrays[name] for name, feature in features.items() if feature.kind != "frames"}
    return {**arrays, "deltas": np.array(json.dumps(steps)), **_statistics(numbers, steps)}


def _statistics(numbers: Arrays, steps: Steps) -> Arrays:
    """From the values; not of features of several axes, whose statistics have other shapes in each version."""
    found = {}
    for name, values in numbers.items():
        present = values[:, steps[name].index(0)] if name in steps else values
        if present.ndim > 2:
            continue
        for kind in ("mean", "std", "min", "max"):
            found[f"stats/{name}/{kind}"] = np.atleast_1d(getattr(present.astype(np.float64), kind)(axis=0))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("out", type=Path)
    parser.add_argument("--fps", type=float, required=True, help="steps a second, as the export has it")
    parser.add_argument("--deltas", type=json.loads, default={}, help="steps by feature, as JSON")
    parser.add_argument("--digests", action="store_true", help="of pictures, their SHA-256 only")
    parser.add_argument("--no-pictures", action="store_true")
    arguments = parser.parse_args()
    arrays = expected(
        arguments.source,
        arguments.deltas,
        arguments.fps,
        has_pictures=not arguments.no_pictures,
        has_digests=arguments.digests,
    )
    np.savez_compressed(arguments.out, **arrays)
    print(f"{arguments.out}: {len(arrays['index'])} items")


if __name__ == "__main__":
    main()
