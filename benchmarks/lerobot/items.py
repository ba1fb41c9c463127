"""Items of a LeRobot data set as arrays, in the one form that everybody here compares: a dict, or an .npz of it.

| key | value |
| --- | --- |
| a key of LeRobot's items | all its values, stacked, of LeRobot's dtype, in the order of the items' keys |
| a picture's | uint8 (N, [T,] 3, H, W), or with digests the SHA-256 of each picture's bytes, bytes of length 64 |
| `task` | texts |
| `deltas` | JSON: steps around the present one, by feature, that the items were read with |
| `stats/FEATURE/NAME` | statistics of the whole data set |
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Deltas = Mapping[str, Iterable[int]]
_OWN = ("deltas", "stats/")


def seconds(deltas: Deltas, fps: float) -> dict[str, list[float]] | None:
    """`delta_timestamps` of LeRobot."""
    return {name: [step / fps for step in steps] for name, steps in deltas.items()} or None


def stacked(items: Iterable[Mapping[str, Any]], pictures: Iterable[str], *, has_digests: bool = False) -> Arrays:
    """Items, all with the same keys, as one array a key."""
    names = frozenset(pictures)
    columns: dict[str, list[Any]] = {}
    order: list[str] | None = None
    for item in items:
        order = order or list(item)
        if list(item) != order:
            raise ValueError(f"keys {list(item)}, those of the first item are {order}")
        for name, value in item.items():
            columns.setdefault(name, []).append(_plain(name, value, names, has_digests))
    return {name: np.stack(values) for name, values in columns.items()}


def _plain(name: str, value: Any, pictures: frozenset[str], has_digests: bool) -> np.ndarray:
    array = np.asarray(value)
    if name not in pictures:
        return array
    whole = np.rint(array * 255).astype(np.uint8)
    if array.dtype != np.float32 or not np.array_equal(whole / np.float32(255), array):
        raise ValueError(f"{name}: {array.dtype} between {array.min()} and {array.max()}, no bytes / 255")
    return digests(whole) if has_digests else whole


def digests(pictures: np.ndarray) -> np.ndarray:
    """SHA-256 of each picture of uint8 (..., 3, H, W)."""
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    found = [hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest() for picture in flat]
    return np.array(found, "S64").reshape(pictures.shape[:-3])


def flat_stats(stats: Mapping[str, Mapping[str, Any]]) -> Arrays:
    """Statistics of a data set, as LeRobot's `meta.stats` has them, one array a number."""
    return {f"stats/{name}/{kind}": np.asarray(value) for name, by in stats.items() for kind, value in by.items()}


def deltas_of(arrays: Mapping[str, np.ndarray]) -> dict[str, list[int]]:
    """What the items were read with."""
    found: dict[str, list[int]] = json.loads(str(arrays["deltas"])) if "deltas" in arrays else {}
    return found


def item_keys(arrays: Iterable[str]) -> list[str]:
    """The items' own keys, without what stands beside them."""
    return [name for name in arrays if not name.startswith(_OWN)]


def differences(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> list[str]:
    """What is not the same in items: keys, dtypes, shapes, and the first item whose values differ."""
    problems = [f"{name}: missing" for name in wanted if name not in found]
    problems += [f"{name}: not wanted" for name in found if name not in wanted]
    for name in wanted:
        if name not in found:
            continue
        a, b = found[name], wanted[name]
        if b.dtype.kind == "S" and a.dtype == np.uint8:
            a = digests(a)
        if a.dtype.kind != b.dtype.kind or (a.dtype != b.dtype and b.dtype.kind not in "SU") or a.shape != b.shape:
            problems.append(f"{name}: {a.dtype} {a.shape}, wanted {b.dtype} {b.shape}")
        elif not np.array_equal(a, b):
            item = int(np.argwhere(a != b)[0][0])
            problems.append(f"{name}: item {item} is {_short(a[item])}, wanted {_short(b[item])}")
    return problems


def stats_differences(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray], part: float) -> list[str]:
    """Statistics that are wanted and missing, of another shape, or further away than a part of their size."""
    problems = []
    for name, value in wanted.items():
        if name not in found:
            problems.append(f"{name}: missing")
        elif found[name].shape != value.shape:
            problems.append(f"{name}: shape {found[name].shape}, wanted {value.shape}")
        elif not np.allclose(found[name], value, rtol=part, atol=part):
            problems.append(f"{name}: {_short(found[name])}, wanted {_short(value)}")
    return problems


def _short(value: np.ndarray) -> str:
    text = np.array2string(np.asarray(value), threshold=8, edgeitems=3).replace("\n", "")
    return text if len(text) < 200 else text[:200] + "..."
