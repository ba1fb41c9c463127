"""Writes the small data sets of `recipes.py` by LeRobot's own writer, and what its own reader gives for their items.

    python benchmarks/lerobot/write_sets.py tests/sharding/lerobot/sets [NAME ...]

A data set stands in NAME_v21 or NAME_v30, as the LeRobot that is installed writes it, but with videos in H.264; all its
items in NAME_v30_expected.npz. Run it in an environment of `requirements-v*.txt`.
"""

import argparse
import functools
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import compat

compat.prepare()
# Tasks of an episode go through a set: in which order, hashes decide.
if os.environ.get("PYTHONHASHSEED") != "0":
    os.environ["PYTHONHASHSEED"] = "0"
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])

import av  # noqa: E402
import numpy as np  # noqa: E402
from lerobot.datasets import lerobot_dataset, video_utils  # noqa: E402
from read_items import read  # noqa: E402
from recipes import RECIPES, Recipe  # noqa: E402

VERSION = lerobot_dataset.CODEBASE_VERSION.removeprefix("v")


def write(recipe: Recipe, root: Path) -> None:
    """One data set."""
    encode = functools.partial(video_utils.encode_video_frames, vcodec="h264", g=recipe.group)
    # LeRobot's own choice is AV1 with groups of two.
    lerobot_dataset.encode_video_frames = lambda *given, **named: encode(*given, **{**named, "vcodec": "h264"})
    data = lerobot_dataset.LeRobotDataset.create("small/set", recipe.fps, recipe.features(), root, robot_type="arm")
    if recipe.files_mb:
        data.meta.update_chunk_settings(chunks_size=2)
        data.meta.metadata_buffer_size = 3
        data.meta.info["data_files_size_in_mb"], data.meta.info["video_files_size_in_mb"] = recipe.files_mb
    for episode in recipe.episodes():
        for step, task in episode:
            add(data, step, task)
        save(data)
    if VERSION != "2.1":
        data.finalize()
    shutil.rmtree(root / "images", ignore_errors=True)


def add(data: Any, step: dict[str, Any], task: str) -> None:
    """One step; how its task is handed over depends on the version."""
    if VERSION == "2.1":
        data.add_frame(step, task)
    else:
        data.add_frame({**step, "task": task})


def save(data: Any) -> None:
    """One episode, encoded in this process, where the codec was exchanged."""
    if VERSION == "2.1":
        data.save_episode()
    else:
        data.save_episode(parallel_encoding=False)


def make_older(root: Path, older: Path) -> None:
    """A data set v2.0 of one v2.1: statistics of the whole, none of episodes. No LeRobot at hand writes it."""
    shutil.rmtree(older, ignore_errors=True)
    shutil.copytree(root, older)
    (older / "meta" / "episodes_stats.jsonl").unlink()
    info = json.loads((older / "meta" / "info.json").read_text())
    (older / "meta" / "info.json").write_text(json.dumps({**info, "codebase_version": "v2.0"}, indent=4))
    stats = lerobot_dataset.LeRobotDatasetMetadata("small/set", root=root).stats
    plain = {
        name: {kind: value.tolist() for kind, value in by.items() if kind != "count"} for name, by in stats.items()
    }
    (older / "meta" / "stats.json").write_text(json.dumps(plain, indent=4))


def expect(recipe: Recipe, root: Path) -> None:
    """All items of a data set, into the file beside it."""
    arrays = read(root, recipe.deltas, has_digests=recipe.has_digests)
    np.savez_compressed(f"{root}_expected.npz", **arrays)
    size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    print(f"{root}: {len(arrays['index'])} items of {len(recipe.lengths)} episodes, {size / 1024:.0f} KiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("names", nargs="*", help="all without")
    arguments = parser.parse_args()
    # Each encoder's own words are many; LeRobot turns them on again after every video.
    av.logging.set_level(av.logging.ERROR)
    av.logging.restore_default_callback = lambda: None
    for name in arguments.names or RECIPES:
        recipe = RECIPES[name]
        if VERSION not in recipe.versions:
            continue
        root = arguments.out / f"{name}_v{VERSION.replace('.', '')}"
        shutil.rmtree(root, ignore_errors=True)
        write(recipe, root)
        expect(recipe, root)
        if VERSION == "2.1" and "2.0" in recipe.versions:
            before = arguments.out / f"{name}_v20"
            make_older(root, before)
            expect(recipe, before)


if __name__ == "__main__":
    main()
