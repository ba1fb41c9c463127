"""What a job leaves for the one that resumes it: beside each shard what became of its task, and statistics so far."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.files.names import index_name
from epistream.sharding.files.storage import write_local
from epistream.sharding.format.statistics import Summary, not_finite_of
from epistream.sharding.format.tables import parse_tables, write_tables
from epistream.sharding.pack.shard_task import ShardResult, ShardTask, pack_shard
from epistream.sharding.pack.workspace import STATISTICS_FILE, kept_name
from epistream.sharding.pictures.fidelity import Fidelity
from epistream.sharding.tasks.pulse import Pulse

_KIND = "epistream.pack-kept"
_VERSION = 1
_VALUES = ("count", "mean", "squares", "minimum", "maximum")
_TORN = (OSError, FormatError, LookupError, TypeError, ValueError)


def pack_and_keep(task: ShardTask, pulse: Pulse) -> ShardResult:
    """As `pack_shard`; then the result is kept beside the shard."""
    result = pack_shard(task, pulse)
    if result.is_packed:
        about = {
            "checksums": list(result.checksums.items()),
            "faults": result.faults,
            "not_finite": {name: counts.to_dict() for name, counts in result.not_finite.items()},
            "fidelity": {name: vars(measured) for name, measured in result.fidelity.items()},
        }
        result.key = _key(task)
        folder = Path(task.folder)
        # The statistics first: a result without them would be none.
        _write(folder / kept_name(task.name, "statistics"), {"key": result.key}, result.statistics)
        _write(folder / kept_name(task.name, "result"), {"key": result.key, **about}, {})
    return result


def key_if_kept(task: ShardTask) -> str:
    """The key of a complete shard: it, its index and its sources are as they were when it was made. Else empty."""
    result = read_kept(task, with_statistics=False)
    return result.key if result else ""


def read_kept(task: ShardTask, *, with_statistics: bool) -> ShardResult | None:
    """The result of a complete shard; None if it is not complete, or what was kept is torn."""
    folder = Path(task.folder)
    try:
        about, _ = _read(folder / kept_name(task.name, "result"))
        statistics: dict[str, Summary] = {}
        keys = {about["key"], _key(task)}
        if with_statistics and len(keys) == 1:
            summed, statistics = _read(folder / kept_name(task.name, "statistics"))
            keys.add(summed["key"])
        if len(keys) > 1:
            return None
        return ShardResult(
            is_packed=True,
            key=about["key"],
            checksums={int(number): checksum for number, checksum in about["checksums"]},
            statistics=statistics,
            not_finite=not_finite_of(about["not_finite"]),
            fidelity={name: Fidelity(**measured) for name, measured in about["fidelity"].items()},
            faults=about["faults"],
        )
    except _TORN:
        return None


def keep_statistics(folder: Path, keys: Sequence[str], statistics: Mapping[str, Summary]) -> None:
    """Keep what the first shards of a job give together, so that a job that resumes need not read it of each."""
    _write(folder / STATISTICS_FILE, {"num_shards": len(keys), "digest": _digest(keys)}, statistics)


def kept_statistics(folder: Path, keys: Sequence[str]) -> tuple[int, dict[str, Summary]]:
    """Of how many of the first shards with these keys statistics are kept, and these; of none if one differs."""
    try:
        about, statistics = _read(folder / STATISTICS_FILE)
        first = keys[: about["num_shards"]]
        if all(first) and (len(first), _digest(first)) == (about["num_shards"], about["digest"]):
            return len(first), statistics
    except _TORN:
        pass
    return 0, {}


def _key(task: ShardTask) -> str:
    """A hash of everything that the result depends on; options and versions of libraries are the job's own."""
    folder = Path(task.folder)
    written = [(folder / name).stat() for name in (task.name, index_name(task.name))]
    facts = [
        _VERSION,
        task.name,
        [feature.to_dict() for feature in task.features.values()],
        [(one.episode_index, one.source_index, one.group, one.length, one.split) for one in task.episodes],
        [
            (number, vars(source) | {"others": list(map(vars, source.others))}, number in task.unhashed)
            for number, source in sorted(task.sources.items())
        ],
        [(status.st_size, status.st_mtime_ns) for status in written],
    ]
    return _digest([json.dumps(facts)])


def _digest(texts: Sequence[str]) -> str:
    return xxhash.xxh3_128_hexdigest("\n".join(texts).encode())


def _write(path: Path, about: Mapping[str, Any], statistics: Mapping[str, Summary]) -> None:
    arrays: dict[str, NDArray[Any]] = {}
    said: dict[str, Any] = {}
    for name, summary in statistics.items():
        said[name] = {"shape": summary.shape, "num_steps": summary.num_steps, "num_levels": len(summary.levels)}
        arrays |= {f"{value}:{name}": getattr(summary, value) for value in _VALUES}
        arrays |= {f"level {number}:{name}": level for number, level in enumerate(summary.levels)}
    arrays["about"] = np.frombuffer(json.dumps({**about, "statistics": said}).encode(), np.uint8)
    # Not synchronised, and left out on a full disk: what is missing or torn is made again.
    with contextlib.suppress(OSError):
        write_local(path, write_tables(_KIND, {}, arrays), sync=False)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Summary]]:
    arrays = parse_tables(path.read_bytes(), _KIND, path.name, "It is made again.").arrays
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
