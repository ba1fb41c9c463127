"""Which groups of an HDF5 file of no known layout may be episodes, and which datasets pictures."""

import re
from collections.abc import Sequence

import h5py
import natsort
import numpy as np

from epistream.errors import EpistreamError
from epistream.sharding.layouts.jpeg_rows import row_bytes
from epistream.sharding.opening.walking import CANNOT_OPEN, go_on

_MIN_SIDE = 8
_EPISODE = re.compile(r"ep|episode|demo|demonstration|traj|trajectory|rollout|run|trial|sample|seq|sequence|record")
_PARTS_OF_ONE = re.compile(
    r"(?=.)(?:left|right)?(?:(?:cam|camera|image|robot|arm|hand|gripper|agent|sensor|finger|joint|view|rgb|depth|"
    r"leader|follower|master|puppet|state|action|observation)s?|obs)?"
)
# As many as a layout file may have.
_MAX_STARS = 4


def below(paths: Sequence[str], group: str) -> list[str]:
    """The paths below a group, from there on."""
    prefix = group.strip("/") + "/"
    return list(paths) if group == "/" else [path.removeprefix(prefix) for path in paths if path.startswith(prefix)]


def find_episodes(
    file: h5py.File, paths: Sequence[str], datasets: Sequence[str], cut: str = ""
) -> tuple[str, list[str]]:
    """Which groups are episodes: the outermost alike ones that hold whatever has rows; else the file is one.

    Args:
        file: An open file.
        paths: Of what is in it.
        datasets: Of those that are datasets.
        cut: The first path that was not looked at, if not all were: nothing is said of the groups in which it lies.
    """
    alike: dict[str, list[str]] = {}
    for path in paths:
        if isinstance(file[path], h5py.Group):
            head, _, last = path.rpartition("/")
            starred = "/".join(_starred(part) for part in head.split("/") if head)
            starred = f"{starred}/" if starred else ""
            alike.setdefault(starred + _starred(last), []).append(path)
            alike.setdefault(f"{starred}*", []).append(path)
    arrays = [path for path in datasets if has_rows(file[path])]
    # First those that are called so, outer ones before inner ones, and names of one pattern before any names.
    for pattern in sorted(
        alike, key=lambda one: (not _is_named(one), one.count("/"), one.endswith("/*") or one == "*")
    ):
        go_on(pattern)
        torn = "/".join(cut.split("/")[: pattern.count("/") + 1]) if cut else None
        groups = [f"/{path}" for path in natsort.natsorted(set(alike[pattern])) if path != torn]
        whole = arrays if torn is None else [path for path in arrays if not path.startswith(f"{torn}/")]
        good = _episodes_of(file, pattern, groups, whole)
        if good:
            return pattern, good
    return "", ["/"]


def _starred(name: str) -> str:
    """A name with a star for each number; one for all from the first to the last, where a date is in it."""
    starred = re.sub(r"\d+", "*", name)
    return re.sub(r"\*.*\*", "*", starred) if starred.count("*") > 2 else starred


def _word(pattern: str) -> str:
    return re.sub(r"[^a-z]", "", pattern.rpartition("/")[2].lower())


def _is_named(pattern: str) -> bool:
    return bool(_EPISODE.fullmatch(_word(pattern)))


def _episodes_of(file: h5py.File, pattern: str, groups: list[str], arrays: Sequence[str]) -> list[str]:
    """Those of the groups that are episodes with rows; none if the groups are something else."""
    is_named = _is_named(pattern)
    if not 1 <= pattern.count("*") <= _MAX_STARS or (len(groups) < 2 and not is_named):
        return []
    mine = _by_group(pattern, groups, arrays)
    if any(_PARTS_OF_ONE.fullmatch(word) for word in (_word(pattern), *map(_word, mine))):
        return []
    if not mine or (sum(map(len, mine.values())) < len(arrays) and not is_named):
        return []  # rows beside them: they are parts of one episode
    if len(mine) < len(groups) and not is_named:
        return []
    # Groups of one structure; cameras have it as well, but no numbers.
    common = set.intersection(*mine.values())
    first = next(iter(mine))
    is_whole = common and (is_named or any(picture(file[f"{first}/{path}"])[0] == "" for path in common))
    return list(mine) if is_whole else []


def _by_group(pattern: str, groups: Sequence[str], arrays: Sequence[str]) -> dict[str, set[str]]:
    """The arrays below each of some groups of one depth, without groups that have none."""
    depth = pattern.count("/") + 1
    found: dict[str, set[str]] = {group: set() for group in groups}
    for path in arrays:
        parts = path.split("/")
        found.get("/" + "/".join(parts[:depth]), set()).add("/".join(parts[depth:]))
    return {group: inside for group, inside in found.items() if inside}


def has_rows(found: h5py.Dataset) -> bool:
    """Whether a dataset may have a row for each step."""
    return found.ndim >= 1 and len(found) > 1 and (found.dtype.kind in "biuf" or picture(found)[0] != "")


def picture(found: h5py.Dataset) -> tuple[str, str]:
    """What a dataset is as a camera (``hwc``, ``chw``, ``jpeg``, or nothing), and what keeps it from being one."""
    shape = found.shape
    if found.dtype.kind in "uif" and found.ndim == 4 and min(shape[1:]) >= 1:
        if shape[3] <= 4 and min(shape[1:3]) >= _MIN_SIDE:
            return "hwc", ""
        if shape[1] <= 4 and min(shape[2:]) >= _MIN_SIDE:
            return "chw", ""
    if found.dtype.kind in "uif" and found.ndim == 3 and min(shape[1:]) >= 4 * _MIN_SIDE:
        return "hwc", ""
    is_rows = (found.dtype.kind in "SO" and found.ndim == 1) or (found.dtype == np.uint8 and found.ndim == 2)
    if is_rows and len(found) and (found.dtype.kind != "O" or h5py.check_vlen_dtype(found.dtype) == np.uint8):
        return _picture_file(found)
    return "", ""


def _picture_file(found: h5py.Dataset) -> tuple[str, str]:
    try:
        row = bytes(row_bytes(found[0])[:4])
    except (EpistreamError, *CANNOT_OPEN) as error:
        return "", str(error)
    if row.startswith(b"\xff\xd8"):
        return "jpeg", ""
    return "", "rows of PNG files, which are not read; only JPEG is" if row == b"\x89PNG" else ""
