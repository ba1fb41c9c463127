"""What a job leaves for the one that resumes it: beside each shard what became of its task, and statistics so far."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.files.names import index_name
from epistream.sharding.format.episode_meta import episode_meta_from_dict
from epistream.sharding.format.statistics import Summary, not_finite_of
from epistream.sharding.format.tables import parse_tables, write_tables
from epistream.sharding.manifest.episode_records import EpisodeRecords
from epistream.sharding.manifest.manifest_builder import ShardSummary
from epistream.sharding.pack.shard_task import ShardResult, ShardTask, pack_shard
from epistream.sharding.pack.workspace import STATISTICS_FILE, kept_name
from epistream.sharding.pictures.fidelity import Fidelity
from epistream.sharding.tar.shard_store import Store, Stored
from epistream.sharding.tasks.pulse import Pulse

_KIND = "epistream.pack-kept"
_VERSION = 3
_VALUES = ("count", "mean", "squares", "minimum", "maximum")
_TORN = (OSError, FormatError, LookupError, TypeError, ValueError)


def pack_and_keep(task: ShardTask, pulse: Pulse) -> ShardResult:
    """As `pack_shard`; then the result is kept beside the shard.

    Raises:
        PackError: As `pack_shard`; also if `ShardTask.must_keep`, and it cannot be kept.
    """
    result = pack_shard(task, pulse)
    shard, store = result.shard, Store(task.url, task.storage_options)
    if shard is None and not task.must_keep:
        return result  # an episode that could not be read may be there next time
    result.key = _key(task, shard)
    about: dict[str, Any] = {
        "key": result.key,
        "checksums": list(result.checksums.items()),
        "faults": result.faults,
        "not_finite": {name: counts.to_dict() for name, counts in result.not_finite.items()},
        "fidelity": {name: vars(measured) for name, measured in result.fidelity.items()},
    }
    if shard is not None:
        index = index_name(task.name)
        about["tar"] = [shard.num_bytes, shard.checksum, store.mtime_ns(task.name)]
        about["index"] = [shard.index_bytes, shard.index_checksum, store.mtime_ns(index)]
        about["episodes"] = [meta.to_dict() for meta in shard.episodes]
    # The statistics first: a result without them would be none.
    _write(store, kept_name(task.name, "statistics"), {"key": result.key}, result.statistics, must=task.must_keep)
    records = shard.records.to_bytes() if shard and shard.records else b""
    _write(store, kept_name(task.name, "result"), about, {}, records, must=task.must_keep)
    return result


def kept_result(task: ShardTask, store: Store) -> ShardResult | None:
    """What a task left, without its statistics; None if it is not complete, or torn. Small files are read, and no tar.

    Complete is a shard that is, with its index and its sources, as when it was made.
    """
    try:
        arrays = _arrays(store, kept_name(task.name, "result"))
        about = json.loads(arrays["about"].tobytes())
        shard = None
        if "tar" in about:
            tar, index = Stored(*about["tar"]), Stored(*about["index"])
            if not (store.holds(task.name, tar) and store.holds(index_name(task.name), index)):
                return None
            records = EpisodeRecords.parse(arrays["records"].tobytes(), task.name)
            shard = replace(_summary(task.name, tar, index, about["episodes"]), records=records)
        if about["key"] != _key(task, shard):
            return None
        return ShardResult(
            shard=shard,
            key=about["key"],
            checksums={int(number): checksum for number, checksum in about["checksums"]},
            not_finite=not_finite_of(about["not_finite"]),
            fidelity={name: Fidelity(**measured) for name, measured in about["fidelity"].items()},
            faults=about["faults"],
        )
    except _TORN:
        return None


def statistics_of_kept(task: ShardTask, key: str, store: Store) -> dict[str, Summary] | None:
    """The statistics of a result that was kept under a key; None if they are torn, or of another."""
    with contextlib.suppress(*_TORN):
        about, statistics = _read(store, kept_name(task.name, "statistics"))
        if about["key"] == key:
            return statistics
    return None


def _summary(name: str, tar: Stored, index: Stored, episodes: Sequence[Any]) -> ShardSummary:
    metas = tuple(episode_meta_from_dict(one, name) for one in episodes)
    return ShardSummary(
        name=name,
        split=metas[0].split,
        num_bytes=tar.num_bytes,
        checksum=tar.checksum,
        index_bytes=index.num_bytes,
        index_checksum=index.checksum,
        episodes=metas,
        numbers=np.array([meta.episode_index for meta in metas], np.int64),
    )


def keep_statistics(store: Store, keys: Sequence[str], statistics: Mapping[str, Summary]) -> None:
    """Keep what the first shards of a job give together, so that a job that resumes need not read it of each."""
    _write(store, STATISTICS_FILE, {"num_shards": len(keys), "digest": _digest(keys)}, statistics)


def kept_statistics(store: Store, keys: Sequence[str]) -> tuple[int, dict[str, Summary]]:
    """Of how many of the first shards with these keys statistics are kept, and these; of none if one differs."""
    try:
        about, statistics = _read(store, STATISTICS_FILE)
        first = keys[: about["num_shards"]]
        if all(first) and (len(first), _digest(first)) == (about["num_shards"], about["digest"]):
            return len(first), statistics
    except _TORN:
        pass
    return 0, {}


def _key(task: ShardTask, shard: ShardSummary | None) -> str:
    """A hash of everything that a result depends on; options and versions of libraries are the job's own."""
    facts = [
        _VERSION,
        task.name,
        [feature.to_dict() for feature in task.features.values()],
        [(one.episode_index, one.source_index, one.group, one.length, one.split) for one in task.episodes],
        [
            (number, vars(source) | {"others": list(map(vars, source.others))}, number in task.unhashed)
            for number, source in sorted(task.sources.items())
        ],
    ]
    return _digest([json.dumps(facts), shard.checksum if shard else ""])


def _digest(texts: Sequence[str]) -> str:
    return xxhash.xxh3_128_hexdigest("\n".join(texts).encode())


def _write(
    store: Store,
    name: str,
    about: Mapping[str, Any],
    statistics: Mapping[str, Summary],
    records: bytes = b"",
    *,
    must: bool = False,
) -> None:
    arrays: dict[str, NDArray[Any]] = {"records": np.frombuffer(records, np.uint8)}
    said: dict[str, Any] = {}
    for feature, summary in statistics.items():
        said[feature] = {"shape": summary.shape, "num_steps": summary.num_steps, "num_levels": len(summary.levels)}
        arrays |= {f"{value}:{feature}": getattr(summary, value) for value in _VALUES}
        arrays |= {f"level {number}:{feature}": level for number, level in enumerate(summary.levels)}
    arrays["about"] = np.frombuffer(json.dumps({**about, "statistics": said}).encode(), np.uint8)
    store.keep(name, write_tables(_KIND, {}, arrays), must=must)


def _arrays(store: Store, name: str) -> dict[str, NDArray[Any]]:
    return parse_tables(store.read(name), _KIND, name, "It is made again.").arrays


def _read(store: Store, name: str) -> tuple[dict[str, Any], dict[str, Summary]]:
    arrays = _arrays(store, name)
    about = json.loads(arrays["about"].tobytes())
    statistics = {
        name: Summary(
            **{value: arrays[f"{value}:{name}"] for value in _VALUES},
            shape=tuple(said["shape"]),
            num_steps=said["num_steps"],
            levels=tuple(arrays[f"level {number}:{name}"] for number in range(said["num_levels"])),
        )
        for name, said in about["statistics"].items()
    }
    return about, statistics
