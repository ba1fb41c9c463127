"""What a job saw when it looked into its sources, kept for the one that resumes it."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from epistream.errors import EpistreamError, FormatError
from epistream.file_systems import is_same_version, local_path
from epistream.sharding.files.storage import Options
from epistream.sharding.files.versioned_files import version_and_bytes
from epistream.sharding.format.features import Feature, features_from_list
from epistream.sharding.format.tables import parse_tables, write_tables
from epistream.sharding.opening.other_files import OtherFile
from epistream.sharding.pack.plan import ScannedEpisode, ScannedFile, SetFile, SourceFile, ToldOfEpisode
from epistream.sharding.pack.workspace import SCANS_FILE
from epistream.sharding.tar.shard_store import Store

_KIND = "epistream.pack-scans"
_VERSION = 1
# Of an episode, behind which may stand what was refused, and what is told of it.
_FEWEST_VALUES = 6


def keep_scans(store: Store, job: Mapping[str, str], scans: Sequence[ScannedFile]) -> None:
    """Keep the scans of a job beside its shards.

    Args:
        store: Of the shards.
        job: What else they depend on: hashes of the options, and of the versions of libraries.
        scans: Of every source.
    """
    numbers: dict[tuple[Feature, ...], int] = {}  # most episodes have the same features
    files = [
        [
            vars(scan.source) | {"others": [vars(other) for other in scan.source.others]},
            [_plain(one, numbers.setdefault(one.features, len(numbers))) for one in scan.episodes],
            scan.faults,
            scan.left_out,
            sorted(scan.applied),
        ]
        for scan in scans
        if not isinstance(scan.source, SetFile)  # what is known of their metadata is kept anyway
    ]
    features = [[feature.to_dict() for feature in mine] for mine in numbers]
    said = {"version": _VERSION, "job": dict(job), "features": features, "files": files}
    data = write_tables(_KIND, {}, {"scans": np.frombuffer(json.dumps(said).encode(), np.uint8)})
    store.keep(SCANS_FILE, data)  # without them, the job that resumes looks into every file again


def kept_scans(store: Store, job: Mapping[str, str]) -> dict[str, ScannedFile]:
    """The scans that a job kept, by path; of a job with other options, and from a torn file, none."""
    try:
        tables = parse_tables(store.read(SCANS_FILE), _KIND, SCANS_FILE, "The files are looked into again.")
        said = json.loads(tables.arrays["scans"].tobytes())
        if said["version"] != _VERSION or said["job"] != dict(job):
            return {}
        features = [tuple(features_from_list(mine, SCANS_FILE).values()) for mine in said["features"]]
        scans = [_scan(file, features) for file in said["files"]]
    except (OSError, FormatError, LookupError, TypeError, ValueError):
        return {}
    return {scan.source.path: scan for scan in scans}


def if_unchanged(scan: ScannedFile | None, name: str, access: Options = None) -> ScannedFile | None:
    """`scan`, with the name that its file has now; None if the file is no longer the one that was looked into."""
    if scan is None:
        return None
    if local_path(scan.source.path) is None:
        with contextlib.suppress(EpistreamError):
            if is_same_version(version_and_bytes(scan.source.path, access)[0], scan.source.version):
                return replace(scan, source=replace(scan.source, name=name))
        return None
    try:
        status = Path(scan.source.path).stat()
    except OSError:
        return None
    source = scan.source
    is_same = (status.st_size, status.st_mtime_ns, status.st_ino) == (source.num_bytes, source.mtime_ns, source.inode)
    is_same = is_same and all(other.is_current() for other in source.others)
    return replace(scan, source=replace(source, name=name)) if is_same else None


def _plain(one: ScannedEpisode, number: int) -> list[Any]:
    """An episode as `_scan` takes it, its features by their number."""
    kept = [one.group, one.length, one.split, one.source_bytes, one.estimated_bytes, number]
    if one.told is not None:
        return [*kept, one.refused, list(one.told)]
    return [*kept, one.refused] if one.refused else kept


def _whole(episode: list[Any]) -> list[Any]:
    """An episode of which nothing was refused, or is told, is kept without a word of it."""
    return [*episode, *([], None)[len(episode) - _FEWEST_VALUES :]]


def _scan(file: list[Any], features: Sequence[tuple[Feature, ...]]) -> ScannedFile:
    source, episodes, faults, left_out, applied = file
    return ScannedFile(
        source=SourceFile(**source | {"others": tuple(OtherFile(**other) for other in source.get("others", ()))}),
        episodes=tuple(
            ScannedEpisode(
                group,
                length,
                split,
                source_bytes,
                estimated_bytes,
                features[number],
                tuple(map(tuple, refused)),
                None if told is None else ToldOfEpisode(tuple(told[0]), told[1]),
            )
            for group, length, split, source_bytes, estimated_bytes, number, refused, told in map(_whole, episodes)
        ),
        faults=tuple(faults),
        left_out=tuple(left_out),
        applied=frozenset(applied),
    )
