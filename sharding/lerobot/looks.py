"""What is seen of the pictures of a LeRobot data set when it is first opened: their codecs and lengths of groups."""

import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import xxhash

from epistream.errors import EpistreamError
from epistream.file_systems import is_same_version, local_path
from epistream.sharding.files.pruning import mark_used
from epistream.sharding.files.storage import Options
from epistream.sharding.files.user_cache import make_once
from epistream.sharding.lerobot.episode import video_of
from epistream.sharding.lerobot.files import SourceFile
from epistream.sharding.lerobot.picture_groups import first_pictures
from epistream.sharding.lerobot.seen import bring_starts
from epistream.sharding.lerobot.video_tables import START_WITH_PICTURE, kept_packets
from epistream.sharding.lerobot_meta.hub import is_pinned
from epistream.sharding.lerobot_meta.info import leads_out
from epistream.sharding.lerobot_meta.meta_files import at_once
from epistream.sharding.lerobot_meta.metadata import LeRobotMeta
from epistream.sharding.pictures.headers import codec_of_bytes

_log = logging.getLogger(__name__)

# Raised when the same files would be described otherwise.
_RECIPE = 3
# Files that are tried, where the first are missing or torn: reading them says so.
_MOST_TRIED = 3


class Look(NamedTuple):
    """What a camera's pictures are like.

    Attributes:
        codec: By our name.
        group_steps: Of the longest group; 1 of single pictures.
        step_bytes: A picture takes so many on average.
    """

    codec: str
    group_steps: int
    step_bytes: int


Looks = Mapping[str, Look]  # by LeRobot's key


def keep_looks(
    root: str,
    options: Options,
    meta: LeRobotMeta,
    folder: Path,
    cameras: Sequence[str] | None = None,
    *,
    is_opening: bool = True,
) -> Looks:
    """What one video of each camera looks like, or one picture; nothing of a camera of which none can be read.

    Which order a stream has by itself follows from the groups, so it is kept: every process must see the same.

    Args:
        root: Of the data set.
        options: For fsspec.
        meta: What it says of itself.
        folder: Where it is kept.
        cameras: LeRobot's keys of those that are looked at; all if None.
        is_opening: Whether to look again if a file that was looked at is another one now; else what is kept holds.
    """
    pictures = [key for key, column in meta.info.columns.items() if column.is_picture]
    keys = [key for key in pictures if cameras is None or key in cameras]
    if not keys:
        return {}
    told = ["looks", str(_RECIPE), root, meta.digest, *(keys if cameras is not None else ())]
    name = xxhash.xxh3_128_hexdigest("\0".join(told).encode())
    kept = f"{name}.looks.json"
    seen: dict[str, str] = {}

    def make() -> list[tuple[str, bytes]]:
        looks, versions = _look(root, options, meta, keys, folder)
        seen.update(versions)
        return [(kept, json.dumps({"looks": looks, "files": versions}).encode())]

    def read(place: Path) -> Looks | None:
        found = _read(place / kept, keys)
        if found is None:
            return None
        looks, versions = found
        if is_opening and not is_pinned(root) and versions != seen and not _are_still(root, options, versions):
            return None
        return looks

    looks = make_once(folder / f"{name}.lock", read, make, root)
    unseen = [key for key in keys if key not in looks]
    # What could not be read then may have been downloaded since.
    return {**looks, **_look(root, options, meta, unseen, folder)[0]} if unseen else looks


def _are_still(root: str, options: Options, versions: Mapping[str, str]) -> bool:
    """Whether files have these versions, asked for together."""

    def version(name: str) -> str | None:
        try:
            return SourceFile.at(root, name, options, "a file of a LeRobot data set").version
        except EpistreamError:
            return None

    return all(map(is_same_version, at_once(version, list(versions)), versions.values()))


def _look(
    root: str, options: Options, meta: LeRobotMeta, keys: Sequence[str], folder: Path
) -> tuple[dict[str, Look], dict[str, str]]:
    """Looks, and the versions of the files that they are of."""
    versions: dict[str, str] = {}

    def look_at(key: str) -> Look | None:
        for file in _first_files(root, options, meta.video_files[key], video_of(key)):
            try:
                table = kept_packets(file, folder, meta.info.columns[key].depth)
            except (EpistreamError, OSError) as error:
                _log.info("not looked at: %s", error)
                continue
            versions[file.name] = file.version
            return Look(table.stream.codec, int(table.back.max()) + 1, math.ceil(table.size.mean()))
        return None

    videos = [key for key in meta.info.video_keys if key in keys]
    if local_path(root) is None:
        bring_starts(root, {name: START_WITH_PICTURE for key in videos for name in meta.video_files[key][:1]}, options)
    seen = at_once(look_at, videos) if local_path(root) is None else map(look_at, videos)
    found = {key: look for key, look in zip(videos, seen, strict=True) if look is not None}
    in_rows = [key for key in keys if key not in meta.info.video_keys]
    for file in _first_files(root, options, meta.data_files if in_rows else (), "the rows of an episode"):
        try:
            pictures = first_pictures(file, in_rows, folder)
        except (EpistreamError, OSError) as error:
            _log.info("not looked at: %s", error)
            continue
        codecs = {key: codec_of_bytes(data) for key, data in pictures.items()}
        found |= {key: Look(codec, 1, len(pictures[key])) for key, codec in codecs.items() if codec is not None}
        versions[file.name] = file.version
        break
    return found, versions


def _first_files(root: str, options: Options, names: Sequence[str], what: str) -> Iterator[SourceFile]:
    for name in names[:_MOST_TRIED]:
        try:
            yield SourceFile.at(root, name, options, what, afresh=False)
        except EpistreamError as error:
            _log.info("not looked at: %s", error)


def _read(path: Path, keys: Sequence[str]) -> tuple[Looks, dict[str, str]] | None:
    """What is kept, and the versions of the files that it is of."""
    try:
        said = json.loads(path.read_bytes())
        looks = {key: Look(str(codec), int(steps), int(size)) for key, (codec, steps, size) in said["looks"].items()}
        versions = {str(name): str(version) for name, version in said["files"].items()}
        mark_used(path)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None
    is_sane = set(looks) <= set(keys) and all(min(one[1:]) > 0 and max(one[1:]) < 1 << 31 for one in looks.values())
    is_sane = is_sane and not any(map(leads_out, versions))
    return (looks, versions) if is_sane else None
