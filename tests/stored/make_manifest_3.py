"""Makes a dataset of version 3 that was edited: ``python tests/stored/make_manifest_3.py tests/stored/manifest-3``.

As with make.py, nothing is made again with later code. Only public names are used.
"""

import json
import sys
from pathlib import Path

import h5py
import numpy as np

import epistream as es


def make_source(path: Path, number: int, steps: int) -> None:
    """A robomimic file of one episode without pictures: every value says of which file and step it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        group = file.create_group("data/demo_0")
        values = 100 * number + np.arange(2 * steps, dtype="f4").reshape(steps, 2)
        group["actions"], group["obs/state"] = values, -values
        group.attrs["ep_meta"], group.attrs["success"] = json.dumps({"lang": f"task {number}"}), bool(number)


def main(out: Path) -> None:
    """All of it."""
    for number, steps in enumerate((5, 6, 7)):
        make_source(out / "sources" / f"take_{number}.hdf5", number, steps)
    url = str(out / "edited")
    es.pack([out / "sources" / f"take_{number}.hdf5" for number in range(2)], url)
    es.edit.add(url, out / "sources")
    es.edit.rename(url, {"observation.state": "observation.joints"})
    es.edit.trim(url, (1, -1), "2")
    es.edit.tasks(url, "lift the cube", "1")
    es.edit.split(url, "val", "2")
    es.edit.remove(url, "0")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
