"""How long it takes to open the metadata of a large LeRobot data set: read for the first time, and kept.

    python benchmarks/lerobot_metadata.py [--episodes 100000] [--folder /tmp] [--json]

The sets are made up, with statistics per episode as LeRobot writes them: v3 in tables of 1,000 rows a group, as
conversions have them, and of 10, as recordings do; v2.1 as lines. Each opening is a process of its own, and counts from
the call on. Making them takes a minute and 3 GB.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# In a fresh process: the time of the call, with all that it imports, and whether that was pyarrow.
OPEN = """
import json, sys, time
from pathlib import Path
import epistream.sharding.dataset
start = time.perf_counter()
from epistream.sharding.lerobot_meta.metadata import keep_metadata
meta = keep_metadata(sys.argv[1], None, Path(sys.argv[2]))
seconds = time.perf_counter() - start
print(json.dumps({"s": seconds, "pyarrow": "pyarrow" in sys.modules, "episodes": meta.num_episodes}))
"""
CASES = {"v3, 1,000 rows a group": ("v3.0", 1000), "v3, 10 rows a group": ("v3.0", 10), "v2.1": ("v2.1", 10)}


def open_once(root: Path, kept: Path) -> dict[str, float]:
    """What a fresh process says of one opening."""
    done = subprocess.run([sys.executable, "-c", OPEN, root, kept], capture_output=True, check=True, timeout=600)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Make, open, open again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    import numpy as np
    from robots.lerobot_meta import MadeSet

    lengths = np.random.default_rng(1).integers(100, 600, options.episodes)
    tasks = [f"put the {number}th thing into the box" for number in range(500)]
    results = {}
    for name, (version, rows_per_group) in CASES.items():
        place = Path(tempfile.mkdtemp(prefix="lerobot-", dir=options.folder))
        try:
            made = MadeSet(version, lengths, tasks=tasks, rows_per_group=rows_per_group, episodes_per_file=10_000)
            made.with_statistics = version != "v2.1"  # a file of its own there, which opening never touches
            root = made.write(place / "set")
            size = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
            begin = time.perf_counter()
            first, *later = [open_once(root, place / "kept") for _ in range(4)]
            results[name] = {
                "MB": size / 1e6,
                "first_s": first["s"],
                "kept_s": sorted(one["s"] for one in later)[1],
                "kept_imports_pyarrow": any(one["pyarrow"] for one in later),
                "all_s": time.perf_counter() - begin,
            }
        finally:
            shutil.rmtree(place)
        if not options.json:
            one = results[name]
            print(f"{name}: {one['MB']:.0f} MB, first {one['first_s']:.2f} s, kept {one['kept_s']:.3f} s")
    if options.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
