"""A LeRobot data set as a dataset: every episode a shard, and nothing but its metadata read when it is opened."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np
import xxhash

from epistream.access import Access
from epistream.errors import SourceChangedError, SourceError
from epistream.file_systems import local_path
from epistream.sharding.files.names import EPISODE_MARK
from epistream.sharding.files.storage import Options, join
from epistream.sharding.files.user_cache import default_folder
from epistream.sharding.format.division import NAMES, Division, lerobot_identity
from epistream.sharding.format.feature_sets import Wanted, matching
from epistream.sharding.format.features import Feature
from epistream.sharding.lerobot.episode import SetSource, is_video
from epistream.sharding.lerobot.looks import keep_looks
from epistream.sharding.lerobot.seen import forget_set
from epistream.sharding.lerobot_meta.arrow import Imports
from epistream.sharding.lerobot_meta.features import features_of
from epistream.sharding.lerobot_meta.info import INFO
from epistream.sharding.lerobot_meta.meta_files import MetaFiles
from epistream.sharding.lerobot_meta.metadata import LeRobotMeta, keep_metadata, read_kept
from epistream.sharding.lerobot_meta.splits import splits_of
from epistream.sharding.lerobot_meta.statistics import statistics_of
from epistream.sharding.manifest.manifest_columns import ManifestColumns, Mapped, fingerprint
from epistream.sharding.manifest.opened_dataset import Dataset

_log = logging.getLogger(__name__)

# Bytes of a pixel and step that plans reckon with where no picture could be looked at: half as much again as LeRobot's
# default (AV1, crf 30) takes of clean pictures, and a few per cent of what PNG takes.
_VIDEO_BYTES, _PICTURE_BYTES = 1 / 40, 1.5


def open_lerobot(
    url: str,
    options: Options = None,
    *,
    folder: Path | None = None,
    division: Division | None = None,
    files: MetaFiles | None = None,
    wanted: Wanted | None = None,
) -> Dataset:
    """A LeRobot data set, v2.0 to v3.1, as a dataset; what an episode's files hold is looked at when it is read.

    Args:
        url: Its folder, an absolute path or a URL.
        options: For fsspec.
        folder: Where metadata and indexes are kept; see `sharding.files.user_cache`.
        division: Which episodes are for validation, whatever the data set says; as that says if None.
        files: What is known of its metadata's files, if somebody looked at them just now.
        wanted: Names and patterns of features: nothing is read of a camera that is not among them. All if None, or if
            one fits nothing.

    Raises:
        SourceError, FetchError: If its metadata are missing or cannot be read.
        FormatError: If they are torn, or say what cannot be.
        VersionError: If they are of a version that is not read.
    """
    folder = folder or default_folder()
    access = Access.of(options)
    forget_set(url)
    imports = Imports()
    try:
        is_remote = local_path(url) is None
        meta = keep_metadata(url, access, folder, files=files, on_making=imports.begin if is_remote else None)
        cameras = _chosen(meta, wanted)
        source = _source(url, access, meta, folder, cameras)
    finally:
        imports.end()
    name = _name_of(meta, cameras)
    _remember(name, source)  # as it is now: what was seen of its files at an earlier opening may be past
    dataset = _described(source, name, division)
    for reason in source.left_out:
        _log.warning("%s: not streamed: %s", url, reason)
    if division is not None:
        counts = np.bincount(dataset.episode_split).tolist()
        note = division.note(dict(zip(dataset.splits, counts, strict=True)))
        if note is not None:
            _log.warning("%s: %s", url, note)
    return dataset


def episode_source(index_url: str, options: Options) -> tuple[SetSource, int]:
    """What `Dataset.index_url` of an episode names: its data set, and its position there.

    Raises:
        SourceError: If what was kept of the data set is gone.
        SourceChangedError: If what is kept of it now says something else.
    """
    name, _, position = index_url.rpartition(EPISODE_MARK)
    source = _sources.get(name)
    if source is None:
        before, _, chosen = name.rpartition("#")
        path, _, digest = before.rpartition("#")
        meta = read_kept(Path(path))
        if meta is None:
            raise SourceError(
                f"{path}: gone or torn, wanted what is kept of a LeRobot data set. Open the dataset again: it is made "
                "anew."
            )
        if meta.digest != digest:  # episodes may be others, or elsewhere
            raise SourceChangedError(
                f"{meta.root}: its metadata were changed since the dataset was opened. Open the dataset again."
            )
        cameras = None if chosen == _ALL else tuple(map(unquote, chosen.split(",")))
        source = _source(meta.root, options, meta, Path(path).parent, cameras, is_opening=False)
        _remember(name, source)
    elif source.options is not options:  # of another who opened the same data set in this process
        source = replace(source, options=options)
        _remember(name, source)
    return source, int(position)


# By `_name_of`, each as it was opened last. Plain reads and writes, which no fork leaves half done.
_sources: dict[str, SetSource] = {}
_MOST_SOURCES = 1024


def _remember(name: str, source: SetSource) -> None:
    if len(_sources) >= _MOST_SOURCES and name not in _sources:
        _sources.clear()
    _sources[name] = source


# Stands for all cameras in a name; no key looks so there.
_ALL = "*"


def _chosen(meta: LeRobotMeta, wanted: Wanted | None) -> tuple[str, ...] | None:
    """LeRobot's keys of the cameras that are wanted; None for all."""
    features, _ = features_of(meta.info)
    if wanted is None:
        return None
    names = set(matching(features, wanted))
    if not all(matching(features, [one]) for one in ([wanted] if isinstance(wanted, str) else wanted)):
        return None  # whoever chooses among the features says so, and what there is
    cameras = {name: one.source_path for name, one in features.items() if one.kind == "frames"}
    return tuple(cameras[name] for name in cameras if name in names) if set(cameras) - names else None


def _name_of(meta: LeRobotMeta, cameras: Sequence[str] | None) -> str:
    """The file that metadata are kept in, what they say, since others may be kept there later, and the cameras."""
    chosen = _ALL if cameras is None else ",".join(quote(key, safe="") for key in cameras)
    return f"{meta.path}#{meta.digest}#{chosen}"


def _source(
    url: str,
    options: Options,
    meta: LeRobotMeta,
    folder: Path,
    cameras: Sequence[str] | None,
    *,
    is_opening: bool = True,
) -> SetSource:
    looks = keep_looks(url, options, meta, folder, cameras, is_opening=is_opening)
    codecs = {key: look.codec for key, look in looks.items()}
    features, left_out = features_of(meta.info, {key: look.group_steps for key, look in looks.items()}, codecs)
    if cameras is not None:
        features = {name: one for name, one in features.items() if one.kind != "frames" or one.source_path in cameras}
    sizes = {key: look.step_bytes for key, look in looks.items()}
    return SetSource(url, options, meta, features, folder, left_out, sizes)


def _described(source: SetSource, name: str, division: Division | None) -> Dataset:
    meta, features = source.meta, source.features
    num_episodes = len(meta.length)
    step_bytes = sum(_bytes_of_a_step(source, one) for one in features.values())
    packed = np.maximum(1, np.ceil(meta.length * step_bytes)).astype(np.int64)
    digest = np.frombuffer(bytes.fromhex(meta.digest), np.uint8)
    names, numbers = splits_of(meta.info, join(source.root, INFO))
    if division is not None:
        lengths = enumerate(meta.length.tolist())
        chosen = division.names([lerobot_identity(number, length) for number, length in lengths])
        names = tuple(name for name in NAMES if name in chosen)
        numbers = np.array([names.index(name) for name in chosen], np.uint8)
    is_train = numbers == (names.index("train") if "train" in names else 0)
    columns = ManifestColumns(
        names=Mapped(partial(_index_url, name), range(num_episodes)),
        shard_bytes=packed,
        shard_checksums=np.broadcast_to(digest, (num_episodes, 16)),
        index_bytes=np.ones(num_episodes, np.int64),
        index_checksums=np.broadcast_to(digest, (num_episodes, 16)),
        shard_split=np.zeros(num_episodes, np.uint8),
        episode_shard=np.arange(num_episodes),
        episode_in_shard=np.zeros(num_episodes, np.int64),
        episode_length=meta.length,
        task_offsets=meta.task_offsets,
        task_ids=meta.task_ids,
    )
    # Of all that the set holds, by what it says of itself: a stream of other cameras resumes its states.
    known = fingerprint(features_of(meta.info)[0], names, replace(columns, shard_bytes=meta.length))
    if len(names) > 1:
        known = xxhash.xxh3_128_hexdigest(known.encode() + numbers.tobytes())
    return Dataset(
        url=source.root,
        features=dict(features),
        shard_url=Mapped(partial(join, source.root), Mapped(meta.data_files.__getitem__, meta.data_file_of)),
        index_url=columns.names,
        columns=replace(columns, episode_split=numbers) if len(names) > 1 else columns,
        splits=names,
        tasks=meta.tasks,
        statistics=statistics_of(meta, source.options, features, None if is_train.all() else is_train, source.folder),
        fingerprint=known,
        storage_options=Access.of(source.options),
    )


def _bytes_of_a_step(source: SetSource, feature: Feature) -> float:
    if feature.kind == "array":
        return float(feature.step_bytes)
    seen = source.picture_bytes.get(feature.source_path)
    if seen is not None:
        return float(seen)
    return feature.step_bytes * (_VIDEO_BYTES if is_video(feature) else _PICTURE_BYTES)


def _index_url(name: str, episode: int) -> str:
    return f"{name}{EPISODE_MARK}{episode}"
