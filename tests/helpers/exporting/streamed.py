"""Data sets as streams give them, and exported ones as pyarrow, PyAV and Pillow read them."""

from pathlib import Path
from typing import Any

import numpy as np
from exporting.folder import FolderSource, read_folder
from numpy.typing import NDArray

import epistream as es

# In this process, and quick to encode.
FAST = {"workers": 1, "preset": "ultrafast"}


def streamed(url: Any, split: str | None = None, **options: Any) -> dict[str, NDArray[Any]]:
    """All steps of a dataset, or of a split, in order: each feature, the tasks, and which step of which episode."""
    stream = es.EpisodeStream(
        url, batch_size=16, shuffle=False, remainder="uneven", split=split, cache="off", **options
    )
    batches: dict[str, list[Any]] = {}
    for batch in stream:
        for key, values in batch.items():
            batches.setdefault(key, []).append(np.asarray(values))
    return {key: np.concatenate(values) for key, values in batches.items()}


def assert_same(found: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]], *, but: tuple[str, ...] = ()) -> None:
    """Bit for bit; keys of `but` are in both, of one shape."""
    assert found.keys() == wanted.keys()
    for key, values in wanted.items():
        assert (found[key].dtype, found[key].shape) == (values.dtype, values.shape), key
        if key not in but:
            np.testing.assert_array_equal(found[key], values, key)


def rows_of(root: Path, name: str) -> NDArray[Any]:
    """A column of all steps."""
    return np.array(read_folder(root).rows[name])


def pictures_of(root: Path, camera: str) -> NDArray[np.uint8]:
    """(N, H, W, 3) of all steps."""
    source = FolderSource(root)
    found = []
    for number in range(len(source.lengths)):
        with source.episode(number) as episode:
            found += list(episode.pictures(camera))
    return np.stack(found)


def tasks_of(root: Path) -> list[str]:
    """The text of each step."""
    recorded = read_folder(root)
    return [recorded.tasks[number] for number in recorded.rows["task_index"]]


def files_of(root: Path) -> dict[str, bytes]:
    """Names and bytes of everything."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
