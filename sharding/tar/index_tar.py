"""The index of a tar that has none, from its headers: our own after a loss, or any WebDataset of whole episodes."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.format.checksums import ShardHasher, hash_file
from epistream.sharding.format.episode_meta import (
    EpisodeMeta,
    depths_of,
    episode_meta_from_dict,
    parse_json,
    step_task_of,
)
from epistream.sharding.format.feature_sets import describe_difference, with_longest_groups
from epistream.sharding.format.features import IMAGES, Feature, feature_from_dict, features_from_list
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.format.videos import join_videos
from epistream.sharding.pictures.codec import Codec
from epistream.sharding.pictures.codecs import CODECS, Raw
from epistream.sharding.pictures.depth import Depth
from epistream.sharding.pictures.video_file import VideoTable, read_video_table
from epistream.sharding.tar.captions import read_instructions
from epistream.sharding.tar.doubts import refuse_doubtful, refuse_lone_pictures
from epistream.sharding.tar.npy import HEADER_LIMIT, NpyHeader, read_npy_header
from epistream.sharding.tar.samples import Sample, sort_samples, tell_left_out
from epistream.sharding.tar.step_draft import refuse_steps
from epistream.sharding.tar.tar_reader import Member, MemberFile, read_member, walk

_META_LIMIT_BYTES = 1 << 26


@dataclass(frozen=True)
class _Episode:
    """Where the fields of one episode lie."""

    key: str
    meta: EpisodeMeta
    features: dict[str, Feature]
    array_offset: dict[str, int]
    frame_offset: dict[str, NDArray[np.uint64]]
    frame_size: dict[str, NDArray[np.uint32]]
    videos: dict[str, VideoTable]


def index_tar(path: Path, hasher: ShardHasher | None = None) -> ShardIndex:
    """The index of a local tar. Reads its headers, the beginning of one frame a camera, and all of it for checksums.

    Videos are read whole once more, to see that their packets lie where they say; a frame of each is decoded.

    Args:
        path: The tar.
        hasher: What `hash_file` said of it, if that is known.

    Raises:
        FormatError: If it is no whole tar, or what it holds are no episodes; the message says what it holds.
        OptionError: If there are videos, and PyAV is not installed.
    """
    with path.open("rb") as file:
        members = walk(file, path.name)
        refuse_steps(file, members, path.name)
        samples, left_out = sort_samples(members, path.name)
        episodes = [_episode(file, sample, f"{path.name}, {sample.key}") for sample in samples]
    features = episodes[0].features
    for episode in episodes:
        difference = describe_difference(episode.features, features)
        if difference:
            raise FormatError(
                f"{path.name}: {episode.key}: {difference}, wanted the features of {episodes[0].key}. "
                "Write one of them again, or make tars of their own of those that differ."
            )
        features = with_longest_groups(features, episode.features)
    tell_left_out(left_out, path.name)
    hasher = hasher or hash_file(path)
    arrays = [name for name, feature in features.items() if feature.kind == "array"]
    cameras = [name for name in features if name not in arrays]
    return ShardIndex(
        shard_name=path.name,
        shard_bytes=hasher.num_bytes,
        shard_checksum=hasher.checksum,
        features=features,
        keys=[episode.key for episode in episodes],
        length=np.array([episode.meta.length for episode in episodes], np.int64),
        array_offset={a: np.array([e.array_offset[a] for e in episodes], np.uint64) for a in arrays},
        frame_offset={c: np.concatenate([e.frame_offset[c] for e in episodes]) for c in cameras},
        frame_size={c: np.concatenate([e.frame_size[c] for e in episodes]) for c in cameras},
        episodes=[replace(episode.meta, depth={}) for episode in episodes],
        block_checksums=hasher.block_checksums,
        videos=join_videos(
            {c: [(e.videos[c].stream, e.videos[c].back) for e in episodes] for c in cameras if c in episodes[0].videos}
        ),
        step_task=step_task_of([episode.meta for episode in episodes]),
    )


def _episode(file: BinaryIO, sample: Sample, where: str) -> _Episode:
    """One sample as an episode. Everything that says a length must say the same one."""
    said = _read_meta(file, sample, where)
    said["tasks"] = _tasks(file, sample, said, where)
    is_told = bool(said.keys() & {"length", "features"})
    declared = features_from_list(said.get("features", []), where)
    features, array_offset, lengths = {}, {}, {}
    frame_offset: dict[str, NDArray[np.uint64]] = {}
    frame_size: dict[str, NDArray[np.uint32]] = {}
    for name, member in sample.arrays.items():
        header = read_npy_header(read_member(file, member, HEADER_LIMIT), member.size, f"{where}.{name}.npy")
        feature = _array_feature(name, header, declared, where)
        start = member.offset + header.data_offset
        lengths[name], features[name] = header.shape[0], feature
        if feature.kind == "array":
            array_offset[name] = start
        else:
            frame_offset[name], frame_size[name] = _strided(start, header.shape[0], feature)
    for name, frames in sample.numbered.items():
        if name in features:
            raise FormatError(f"{where}: {name} as an array and as numbered frames, wanted it once. Rename one.")
        if sample.codecs[name].storage == "array":
            features[name], frame_offset[name], frame_size[name] = _join_pixels(file, name, frames, declared, where)
        else:
            features[name] = _camera_feature(file, name, frames, sample.codecs[name], declared, where)
            frame_offset[name], frame_size[name] = _one_by_one(name, frames, where)
        lengths[name] = len(frame_offset[name])
    videos = _videos(file, sample, _depths(said, where), where)
    for name, table in videos.items():
        features[name] = _video_feature(name, table, declared, where)
        frame_offset[name], frame_size[name] = table.offset, table.size
        lengths[name] = len(table.size)
    length = said.setdefault("length", next(iter(lengths.values())))
    for name, found in lengths.items():
        if found != length:
            raise FormatError(
                f"{where}: {name} has {found} steps, wanted {length!r:.20}, the episode's length. Write it with a step "
                "for each of the others, or leave it out."
            )
    if declared and declared.keys() != features.keys():
        raise FormatError(f"{where}: holds {sorted(features)}, its meta.json names {sorted(declared)}.")
    if not declared:
        refuse_lone_pictures(sample, features, where)
    if not is_told:
        refuse_doubtful(sample, features, length, where)
    ordered = {name: features[name] for name in (declared or sorted(features))}
    meta = episode_meta_from_dict(said, f"{where}.meta.json")
    return _Episode(sample.key, meta, ordered, array_offset, frame_offset, frame_size, videos)


def _tasks(file: BinaryIO, sample: Sample, said: Mapping[str, Any], where: str) -> Any:
    """The instructions of an episode as its text or its meta.json says them, or both alike; not checked yet."""
    known = said.get("tasks", [])
    if sample.captions is None:
        return known
    read = list(read_instructions(file, sample.captions, where.removesuffix(f", {sample.key}")))
    if known not in ([], read):
        raise FormatError(
            f"{where}: {sample.captions.name} says {read!r:.80}, meta.json {known!r:.80}, wanted the same "
            "instructions. Leave one out."
        )
    return read


def _read_meta(file: BinaryIO, sample: Sample, where: str) -> dict[str, Any]:
    if sample.meta is None:
        return {}
    if sample.meta.size > _META_LIMIT_BYTES:
        raise FormatError(f"{where}.meta.json: {sample.meta.size:,} bytes, wanted at most {_META_LIMIT_BYTES:,}.")
    value = parse_json(read_member(file, sample.meta), f"{where}.meta.json")
    if not isinstance(value, dict):
        raise FormatError(f"{where}.meta.json: a {type(value).__name__}, wanted a map.")
    return value


def _array_feature(name: str, header: NpyHeader, declared: Mapping[str, Feature], where: str) -> Feature:
    """A ``.npy`` is an array, or a camera of plain pixels where the meta says so or its name and shape do."""
    if not header.shape:
        raise FormatError(f"{where}.{name}.npy: a single number, wanted steps as the first axis.")
    feature = declared.get(name)
    if feature is None:
        is_camera = name.startswith(IMAGES) and len(header.shape) == 4
        return _inferred(where, name, header.dtype, header.shape[1:], Raw if is_camera else None)
    is_array = feature.kind == "array" or CODECS[feature.codec].storage == "array"
    if (feature.dtype, feature.shape) != (header.dtype, header.shape[1:]) or not is_array:
        raise FormatError(
            f"{where}.{name}.npy: {header.dtype} {header.shape[1:]}, its meta.json says {feature.dtype} "
            f"{feature.shape} as {feature.codec}."
        )
    return feature


def _inferred(
    where: str,
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    codec: type[Codec] | None,
    group_steps: int | None = None,
) -> Feature:
    """A feature of which nothing is said; a JPEG is then taken for what JPEGs are, RGB."""
    stored: dict[str, Any] = {"kind": "array", "codec": "npy"}
    if codec:
        stored = {"kind": "frames", "codec": codec.name, "jpeg_channels": "rgb" if codec.has_channel_order else None}
    known = {"name": name, "dtype": dtype, "shape": shape, "group_steps": group_steps}
    return feature_from_dict(known | stored, where)


def _camera_feature(
    file: BinaryIO,
    name: str,
    frames: Mapping[int, Member],
    codec: type[Codec],
    declared: Mapping[str, Feature],
    where: str,
) -> Feature:
    """Size and dtype are those of the first frame; channel order and rotation only a meta.json can tell."""
    number, first = min(frames.items())
    frame_where = f"{where}.{name}.{number:06d}"
    data = read_member(file, first)
    dtype, shape = codec.announced(data, frame_where)
    feature = declared.get(name)
    if feature is None:
        return _inferred(where, name, dtype, shape, codec)
    found = (dtype, shape[:2], codec.name)
    if (feature.dtype, feature.shape[:2], feature.codec) != found or shape[2] > feature.shape[2]:
        raise FormatError(
            f"{frame_where}: {codec.name} of {dtype} {shape}, its meta.json says {feature.codec} of {feature.dtype} "
            f"{feature.shape}."
        )
    return feature


def _depths(said: Mapping[str, Any], where: str) -> dict[str, Depth]:
    try:
        return depths_of(said.get("depth", {}))
    except FormatError as error:
        raise FormatError(f"{where}.meta.json: {error}") from error


def _videos(file: BinaryIO, sample: Sample, depths: Mapping[str, Depth], where: str) -> dict[str, VideoTable]:
    """The table of each video, its places those of the tar."""
    twice = next((name for name in sample.videos if name in sample.arrays or name in sample.numbered), None)
    if twice is not None:
        raise FormatError(f"{where}: {twice} as a video and by other members, wanted it once. Rename one.")
    tables = {}
    for name, member in sample.videos.items():
        opened = io.BufferedReader(MemberFile(file, member))
        table = read_video_table(opened, f"{where}.{name}.mp4", depths.get(name))
        tables[name] = replace(table, offset=table.offset + np.uint64(member.offset))
    return tables


def _video_feature(name: str, table: VideoTable, declared: Mapping[str, Feature], where: str) -> Feature:
    """The camera of a video; sides of which the last row or column is padding only a meta.json can tell."""
    stream, feature = table.stream, declared.get(name)
    shape = (stream.height, stream.width, 3 if stream.depth is None else 1)
    if feature is None:
        dtype = "uint8" if stream.depth is None else "uint16"
        return _inferred(where, name, dtype, shape, CODECS[stream.codec], table.group_steps)
    padding = [coded - side for coded, side in zip(shape, feature.shape, strict=False)]
    found = f"{stream.codec} of {shape} in groups of up to {table.group_steps}"
    if (
        feature.codec != stream.codec
        or not all(more in (0, 1) for more in padding)
        or table.group_steps > (feature.group_steps or 0)
    ):
        raise FormatError(
            f"{where}.{name}.mp4: {found}, its meta.json says {feature.codec} of {feature.shape} in groups of up to "
            f"{feature.group_steps}."
        )
    return feature


def _one_by_one(name: str, frames: Mapping[int, Member], where: str) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    numbers = sorted(frames)
    # Others count from 1, as ffmpeg does. A frame that is missing shows, as the arrays beside are longer then.
    first = 1 if numbers[0] == 1 else 0
    gap = next((wanted for wanted, number in enumerate(numbers, first) if wanted != number), None)
    if gap is not None:
        raise FormatError(
            f"{where}.{name}: no frame {gap} of {len(numbers)}, wanted all from {first} without gaps. Write the tar "
            "again with every frame, or number them anew."
        )
    ordered = [frames[number] for number in numbers]
    too_large = next((member for member in ordered if member.size >= 1 << 32), None)
    if too_large:
        raise FormatError(f"{where}, {too_large.name}: {too_large.size:,} bytes, wanted less than 4 GiB.")
    return (
        np.array([member.offset for member in ordered], np.uint64),
        np.array([member.size for member in ordered], np.uint32),
    )


def _strided(start: int, num_frames: int, feature: Feature) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    offset = np.uint64(start) + np.arange(num_frames, dtype=np.uint64) * np.uint64(feature.step_bytes)
    return offset, np.full(num_frames, feature.step_bytes, np.uint32)


def _join_pixels(
    file: BinaryIO, name: str, parts: Mapping[int, Member], declared: Mapping[str, Feature], where: str
) -> tuple[Feature, NDArray[np.uint64], NDArray[np.uint32]]:
    """A camera of plain pixels that was split by time: each part is numbered by its first step."""
    offsets, sizes, features, step = [], [], [], 0
    for number, member in sorted(parts.items()):
        part = f"{where}.{name}.{number:06d}.npy"
        header = read_npy_header(read_member(file, member, HEADER_LIMIT), member.size, part)
        feature = _array_feature(name, header, declared, where)
        features.append(feature)
        if number != step or feature.kind != "frames" or feature != features[0]:
            raise FormatError(
                f"{part}: {header.dtype} {header.shape}, wanted raw frames that go on at step {step}. Rows are no "
                f"frames: join those of an episode in one {name}.npy of shape (steps, ...)."
            )
        step += header.shape[0]
        offset, size = _strided(member.offset + header.data_offset, header.shape[0], feature)
        offsets.append(offset)
        sizes.append(size)
    return features[0], np.concatenate(offsets), np.concatenate(sizes)
