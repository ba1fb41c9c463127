"""The index of a tar that has none, from its headers: our own after a loss, or any WebDataset of whole episodes."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.format.checksums import ShardHasher, hash_file
from epistream.sharding.format.codec import Codec
from epistream.sharding.format.codecs import CODECS
from epistream.sharding.format.episode_meta import EpisodeMeta, episode_meta_from_dict, parse_json
from epistream.sharding.format.features import (
    IMAGES,
    Feature,
    describe_difference,
    feature_from_dict,
    features_from_list,
)
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.tar.npy import HEADER_LIMIT, NpyHeader, read_npy_header
from epistream.sharding.tar.tar_reader import Member, read_member, walk

_log = logging.getLogger(__name__)

# WebDataset: the key is everything up to the first dot after the last slash.
_KEY = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)")
_NUMBERED = re.compile(r"(.+)\.(\d+)(\.[^.]+)")
_WANTED = (
    "wanted one sample an episode, with members such as KEY.action.npy (steps first), "
    "KEY.observation.images.top.000000.jpg and KEY.meta.json. Pack the source with 'epistream pack'"
)
_META_LIMIT_BYTES = 1 << 26


@dataclass
class _Sample:
    """The members of one WebDataset sample, sorted by what they are."""

    key: str
    meta: Member | None = None
    arrays: dict[str, Member] = field(default_factory=dict)
    numbered: dict[str, dict[int, Member]] = field(default_factory=dict)
    codecs: dict[str, type[Codec]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Episode:
    """Where the fields of one episode lie."""

    key: str
    meta: EpisodeMeta
    features: dict[str, Feature]
    array_offset: dict[str, int]
    frame_offset: dict[str, NDArray[np.uint64]]
    frame_size: dict[str, NDArray[np.uint32]]


def index_tar(path: Path, hasher: ShardHasher | None = None) -> ShardIndex:
    """The index of a local tar. Reads its headers, the beginning of one frame a camera, and all of it for checksums.

    Args:
        path: The tar.
        hasher: What `hash_file` said of it, if that is known.

    Raises:
        FormatError: If it is no whole tar, or what it holds are no episodes; the message says what it holds.
    """
    with path.open("rb") as file:
        samples = _samples(walk(file, path.name), path.name)
        episodes = [_episode(file, sample, f"{path.name}, {sample.key}") for sample in samples]
    features = episodes[0].features
    for episode in episodes:
        difference = describe_difference(features, episode.features)
        if difference:
            raise FormatError(
                f"{path.name}: {difference} in {episodes[0].key} and {episode.key}, wanted the same features."
            )
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
        episodes=[replace(episode.meta, attributes={}) for episode in episodes],
        block_checksums=hasher.block_checksums,
    )


def split_key(name: str) -> tuple[str, str]:
    """Key of the sample and name of the field; both empty for members that belong to no sample."""
    matched = _KEY.fullmatch(name)
    return (matched[1], matched[2]) if matched else ("", "")


def _samples(members: list[Member], where: str) -> list[_Sample]:
    samples: dict[str, _Sample] = {}
    for member in members:
        key, name = split_key(member.name)
        if key:
            _sort_in(samples.setdefault(key, _Sample(key)), member, name.lower(), where)
    whole = [sample for sample in samples.values() if sample.arrays or sample.numbered]
    if not whole:
        first = ", ".join(member.name for member in members[:4])
        raise FormatError(f"{where}: {len(members)} members ({first or 'none'}), no episodes: {_WANTED}.")
    ignored = sorted({other for sample in samples.values() for other in sample.others})
    if ignored:
        _log.warning("%s: these fields are of no known kind and left out: %s", where, ", ".join(ignored[:10]))
    return whole


def _sort_in(sample: _Sample, member: Member, name: str, where: str) -> None:
    numbered = _split_number(name)
    if name == "meta.json":
        twice, sample.meta = sample.meta is not None, member
    elif numbered:
        camera, number, codec = numbered
        frames = sample.numbered.setdefault(camera, {})
        twice = number in frames or sample.codecs.setdefault(camera, codec) is not codec
        frames[number] = member
    elif name.endswith(".npy"):
        twice = name[:-4] in sample.arrays
        sample.arrays[name[:-4]] = member
    else:
        twice = False
        sample.others.append(name)
    if twice:
        raise FormatError(f"{where}, {member.name}: this field twice in one sample, wanted it once.")


def _split_number(name: str) -> tuple[str, int, type[Codec]] | None:
    """Camera, number and codec of a numbered member: a frame, or part of an array, numbered as we write them."""
    matched = _NUMBERED.fullmatch(name)
    codec = _codec_of_suffix(matched[3]) if matched else None
    if not matched or codec is None or (codec.storage == "array" and not 6 <= len(matched[2]) <= 15):
        return None
    return matched[1], int(matched[2]), codec


def _codec_of_suffix(suffix: str) -> type[Codec] | None:
    return next((codec for codec in CODECS.values() if suffix in codec.suffixes), None)


def _episode(file: BinaryIO, sample: _Sample, where: str) -> _Episode:
    """One sample as an episode. Everything that says a length must say the same one."""
    said = _read_meta(file, sample, where)
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
        if sample.codecs[name].storage == "array":
            features[name], frame_offset[name], frame_size[name] = _join_pixels(file, name, frames, declared, where)
        else:
            features[name] = _camera_feature(file, name, frames, sample.codecs[name], declared, where)
            frame_offset[name], frame_size[name] = _one_by_one(name, frames, where)
        lengths[name] = len(frame_offset[name])
    length = said.setdefault("length", next(iter(lengths.values())))
    for name, found in lengths.items():
        if found != length:
            raise FormatError(f"{where}: {name} has {found} steps, wanted {length!r:.20}, the episode's length.")
    if declared and declared.keys() != features.keys():
        raise FormatError(f"{where}: holds {sorted(features)}, its meta.json names {sorted(declared)}.")
    ordered = {name: features[name] for name in (declared or sorted(features))}
    meta = episode_meta_from_dict(said, f"{where}.meta.json")
    return _Episode(sample.key, meta, ordered, array_offset, frame_offset, frame_size)


def _read_meta(file: BinaryIO, sample: _Sample, where: str) -> dict[str, Any]:
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
        return _inferred(where, name, header.dtype, header.shape[1:], _codec_of_suffix(".npy") if is_camera else None)
    is_array = feature.kind == "array" or CODECS[feature.codec].storage == "array"
    if (feature.dtype, feature.shape) != (header.dtype, header.shape[1:]) or not is_array:
        raise FormatError(
            f"{where}.{name}.npy: {header.dtype} {header.shape[1:]}, its meta.json says {feature.dtype} "
            f"{feature.shape} as {feature.codec}."
        )
    return feature


def _inferred(where: str, name: str, dtype: str, shape: tuple[int, ...], codec: type[Codec] | None) -> Feature:
    """A feature of which nothing is said; a JPEG is then taken for what JPEGs are, RGB."""
    stored: dict[str, Any] = {"kind": "array", "codec": "npy"}
    if codec:
        stored = {"kind": "frames", "codec": codec.name, "jpeg_channels": "rgb" if codec.has_channel_order else None}
    return feature_from_dict({"name": name, "dtype": dtype, "shape": shape, **stored}, where)


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


def _one_by_one(name: str, frames: Mapping[int, Member], where: str) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    numbers = sorted(frames)
    if numbers != list(range(len(numbers))):
        gap = next(step for step, number in enumerate(numbers) if step != number)
        raise FormatError(f"{where}.{name}: no frame {gap} of {len(numbers)}, wanted all from 0 without gaps.")
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
            raise FormatError(f"{part}: {header.dtype} {header.shape}, wanted raw frames that go on at step {step}.")
        step += header.shape[0]
        offset, size = _strided(member.offset + header.data_offset, header.shape[0], feature)
        offsets.append(offset)
        sizes.append(size)
    return features[0], np.concatenate(offsets), np.concatenate(sizes)
