"""Makes a folder of manifests of version 2: ``python tests/stored/make_manifest_2.py tests/stored/manifest-2``.

As with make.py, nothing is made again with later code. Only public names are used; what is expected comes from h5py and
from the source files themselves.
"""

import json
import sys
from pathlib import Path

import h5py
import numpy as np

import epistream as es

# Files of demonstrations: the instruction of each, or None. Names have a blank, and characters of three bytes.
FILES = {
    "東京/積む ☃.hdf5": ["積む", 'stack the red cube,\nthen "let go" 🙂'],
    "plain.hdf5": [None, "積む", None],
}


def make_sources(folder: Path) -> None:
    """robomimic files without pictures."""
    for number, (name, tasks) in enumerate(FILES.items()):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            for demo, task in enumerate(tasks):
                group = file.create_group(f"data/demo_{demo}")
                steps = 2 + 3 * number + demo
                values = np.arange(2 * steps, dtype="f4").reshape(steps, 2) + 100 * number + 10 * demo
                group["actions"], group["obs/state"] = values, -values
                if task is not None:
                    group.attrs["ep_meta"] = json.dumps({"lang": task})


def main(out: Path) -> None:
    """All of it."""
    make_sources(out / "sources")
    es.pack(out / "sources", out / "words")
    es.pack(out.parent / "0.1.0" / "tiny", out / "raw", codec="raw")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
