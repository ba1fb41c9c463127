"""What ``meta/info.json`` of a LeRobot data set says: its columns, where its files are, and our features of them."""

import json
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from epistream.errors import FormatError, VersionError
from epistream.sharding.files.foreign import stand_in
from epistream.sharding.files.names import LEROBOT_INFO
from epistream.sharding.pictures.depth import Depth, depth_of_lerobot

INFO = LEROBOT_INFO
VERSIONS = ((2, 0), (2, 1), (3, 0), (3, 1))
MOST_EPISODES = 1 << 28
_MOST_FILES_A_CHUNK = 1 << 31
_VERSION = re.compile(r"v?(\d{1,4})\.(\d{1,4})(?:\.\d+)?")
_NUMBER = re.compile(r"0?\d{0,2}d?")
_DATA = {
    2: "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    3: "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
_VIDEOS = {
    2: "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    3: "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
}
_FIELDS = {2: ("episode_chunk", "episode_index"), 3: ("chunk_index", "file_index")}


@dataclass(frozen=True)
class Column:
    """One feature as ``info.json`` describes it.

    Args:
        key: LeRobot's name.
        dtype: ``video``, ``image``, ``string``, ``language``, or numpy's name.
        shape: Of one step; of pictures in the order that `names` tells.
        names: Of the axes or dimensions, as they are.
        info: What else is said of it: codec, pixel format and so on of a video.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    names: Any
    info: Mapping[str, Any]

    @property
    def is_picture(self) -> bool:
        """Whether it is a camera."""
        return self.dtype in ("video", "image")

    @property
    def depth(self) -> Depth | None:
        """What the pixels of its video stand for if they are distances.

        Raises:
            FormatError: If what is said of them cannot be.
        """
        return depth_of_lerobot({"info": self.info})

    @property
    def picture_shape(self) -> tuple[int, ...]:
        """(H, W, C) of a picture, whichever order its shape has."""
        if len(self.shape) != 3:
            return self.shape
        names = [str(name).lower() for name in self.names] if isinstance(self.names, list) else []
        is_first = names[0].startswith("channel") if len(names) == 3 else False
        if not names and self.shape[0] in (1, 3, 4) and self.shape[2] not in (1, 3, 4):
            is_first = True
        return (*self.shape[1:], self.shape[0]) if is_first else self.shape


@dataclass(frozen=True)
class LeRobotInfo:
    """What ``info.json`` says, compared with what can be.

    Args:
        version: Of LeRobot's format, one of `VERSIONS`.
        fps: Steps a second, of everything.
        columns: By key, in the order of the file.
        splits: By name, as they are: ``{"train": "0:50"}``.
        robot_type: If it is known.
        chunks_size: Episodes, or files from v3 on, in a chunk.
        data_path: Pattern of the Parquet files.
        video_path: Pattern of the videos; None where there are none.
        total_episodes: E.
        total_frames: Steps of all episodes.
        plain: The file as it is.
    """

    version: tuple[int, int]
    fps: float
    columns: dict[str, Column]
    splits: dict[str, str]
    robot_type: str | None
    chunks_size: int
    data_path: str
    video_path: str | None
    total_episodes: int
    total_frames: int
    plain: dict[str, Any]

    @property
    def video_keys(self) -> list[str]:
        """The columns that lie in videos."""
        return [key for key, column in self.columns.items() if column.dtype == "video"]

    def data_file(self, chunk: int, file_or_episode: int) -> str:
        """The relative path of a Parquet file: of a file of a chunk, in v2 of an episode."""
        return _path(self.data_path, self.version[0], "", chunk, file_or_episode)

    def video_file(self, key: str, chunk: int, file_or_episode: int) -> str:
        """The relative path of a video of one camera, likewise."""
        return _path(self.video_path or "", self.version[0], key, chunk, file_or_episode)


def _path(pattern: str, major: int, key: str, chunk: int, number: int) -> str:
    first, second = _FIELDS[major]
    return pattern.format(**{first: chunk, second: number, "video_key": key})


def parse_info(data: bytes, where: str) -> LeRobotInfo:
    """What the bytes of an ``info.json`` say.

    Args:
        data: The whole file.
        where: Its URL, with which messages begin.

    Raises:
        VersionError: If it is of a version that is not read.
        FormatError: If it says anything that cannot be, or would lead out of the data set's folder.
    """
    plain = _parse_json(data, where)
    version = _version(plain, where)
    problem = next(_problems(plain), None)
    if problem:
        raise FormatError(f"{where}: {problem}. Correct it, or download the data set again.")
    columns = {key: _column(key, value) for key, value in plain["features"].items()}
    videos = [key for key, column in columns.items() if column.dtype == "video"]
    robot = plain.get("robot_type")
    info = LeRobotInfo(
        version=version,
        fps=float(plain["fps"]),
        columns=columns,
        splits=plain.get("splits") or {},
        robot_type=robot if isinstance(robot, str) else None,
        chunks_size=plain.get("chunks_size", 1000),
        data_path=plain.get("data_path") or _DATA[version[0]],
        video_path=(plain.get("video_path") or _VIDEOS[version[0]]) if videos else None,
        total_episodes=plain["total_episodes"],
        total_frames=plain["total_frames"],
        plain=plain,
    )
    problem = next(_path_problems(info, videos), None)
    if problem:
        raise FormatError(f"{where}: {problem}. Correct it, or download the data set again.")
    return info


def _parse_json(data: bytes, where: str) -> dict[str, Any]:
    foreign = stand_in(data[:512])
    if foreign:
        raise FormatError(f"{where}: {foreign.what}, wanted what a LeRobot data set says of itself. {foreign.advice}")
    try:
        plain = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{where}: no JSON ({str(error)[:120]}), wanted what a LeRobot data set says of itself. Download it again."
        ) from error
    if not isinstance(plain, dict):
        raise FormatError(f"{where}: a {type(plain).__name__}, wanted a map. Download the data set again.")
    return plain


def _version(plain: Mapping[str, Any], where: str) -> tuple[int, int]:
    said = plain.get("codebase_version")
    found = _VERSION.fullmatch(said) if isinstance(said, str) else None
    if found is None:
        raise FormatError(
            f"{where}: codebase_version {said!r:.40}, wanted a version such as 'v3.0': this is no LeRobot data set, or "
            "not all of one. Check the path."
        )
    version = int(found[1]), int(found[2])
    if version in VERSIONS:
        return version
    known = ", ".join(f"v{major}.{minor}" for major, minor in VERSIONS)
    if version < VERSIONS[0]:
        cure = (
            "Convert it with LeRobot's own scripts, lerobot/common/datasets/v2/convert_dataset_v1_to_v2.py of its "
            "release of that time, or take a newer revision of it."
        )
    else:
        cure = "Install a release of epistream that knows it, or take an older revision: hf://datasets/OWNER/NAME@v3.0."
    raise VersionError(f"{where}: LeRobot's format {said}, wanted {known}. {cure}")


def _problems(plain: Mapping[str, Any]) -> Iterator[str]:
    """What cannot be; later checks rely on the earlier ones."""
    fps = plain.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < 1e6:
        yield f"fps {fps!r:.40}, wanted a number above 0"
    for name, most in (("total_episodes", MOST_EPISODES), ("total_frames", 1 << 48)):
        value = plain.get(name)
        if type(value) is not int or not 0 <= value < most:
            yield f"{name} {value!r:.40}, wanted a whole number from 0"
    if not plain["total_episodes"]:
        yield "total_episodes 0, wanted at least one recorded episode"
    size = plain.get("chunks_size", 1000)
    if type(size) is not int or not 0 < size < _MOST_FILES_A_CHUNK:
        yield f"chunks_size {size!r:.40}, wanted a whole number above 0"
    for name in ("data_path", "video_path"):
        value = plain.get(name)
        if value is not None and not isinstance(value, str):
            yield f"{name} {value!r:.80}, wanted a pattern"
    splits = plain.get("splits")
    if splits is not None and not isinstance(splits, dict):
        yield f"splits {splits!r:.80}, wanted a map of names to slices such as '0:50'"
    yield from _feature_problems(plain.get("features"))


def _feature_problems(features: object) -> Iterator[str]:
    if not isinstance(features, dict) or not features:
        yield f"features {features!r:.80}, wanted a map"
        return
    for key, value in features.items():
        if not isinstance(value, dict) or not isinstance(value.get("dtype"), str):
            yield f"feature {key!r:.80}: {value!r:.80}, wanted a map with dtype and shape"
            return
        shape = value.get("shape", [])
        if not isinstance(shape, list) or not all(type(one) is int and 0 <= one < 1 << 31 for one in shape):
            yield f"feature {key!r:.80}: shape {shape!r:.80}, wanted a list of sizes"


def _column(key: str, value: Mapping[str, Any]) -> Column:
    said = value.get("info") or value.get("video_info") or {}
    info = {**(value.get("video_info") or {}), **said} if isinstance(said, dict) else {}
    return Column(key, value["dtype"], tuple(value.get("shape", ())), value.get("names"), info)


def _path_problems(info: LeRobotInfo, videos: list[str]) -> Iterator[str]:
    """Patterns that are none, or that lead out of the folder of the data set with any of its keys."""
    major = info.version[0]
    patterns = [("data_path", info.data_path, {"video_key"}, [""])]
    if info.video_path is not None:
        patterns.append(("video_path", info.video_path, set(), videos))
    for name, pattern, unknown, keys in patterns:
        known = {*_FIELDS[major], "video_key"} - unknown
        if problem := _pattern_problem(pattern, known):
            yield f"{name} {pattern!r:.120}: {problem}"
            return
        if "{" + _FIELDS[major][1] not in pattern:
            yield f"{name} {pattern!r:.120}: no {{{_FIELDS[major][1]}}}, wanted a file for each"
        for key in keys:
            path = _path(pattern, major, key, 0, 0)
            if leads_out(path):
                yield f"{name} {pattern!r:.120} leads to {path!r:.120}, wanted a file below the data set's folder"


def _pattern_problem(pattern: str, known: set[str]) -> str | None:
    try:
        fields = [(name, spec, way) for _, name, spec, way in string.Formatter().parse(pattern) if name is not None]
    except ValueError as error:
        return f"{error}, wanted a pattern"
    for name, spec, way in fields:
        is_number = name != "video_key"
        if name not in known or way or not (_NUMBER.fullmatch(spec or "") if is_number else not spec):
            return f"field {{{name}:{spec}}}, wanted {', '.join(sorted(known))}"
    return None


def leads_out(path: str) -> bool:
    """Whether a relative path of a file leaves its folder, or would be read as something else in a URL."""
    pieces = path.split("/")
    return (
        any(piece in ("", ".", "..") for piece in pieces)
        or "::" in path
        or "://" in path
        or not path.isprintable()
        or path.startswith("~")
    )
