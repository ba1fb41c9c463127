"""Writing a manifest: its tables first, each under the name of its checksum, and ``dataset.json`` last."""

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from epistream.errors import FormatError
from epistream.sharding.files.storage import Options, join, list_names, remove_folder, remove_quietly, write_atomic
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.tables import Names, write_tables
from epistream.sharding.format.texts import Texts
from epistream.sharding.manifest.dataset_statistics import pack_sketches, sketch_key
from epistream.sharding.manifest.groups import MADE_BY_EDITS, ONE_GROUP
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_columns import MORE_OF_EPISODES, MORE_OF_SHARDS, OF_EPISODES, OF_SHARDS
from epistream.sharding.manifest.manifest_file import (
    FILE_NAME,
    FORMAT,
    KEPT_NAME,
    KIND,
    TABLES_NAME,
    VERSION,
    sketch_file,
)


class ManifestFiles(NamedTuple):
    """A manifest as files: what ``dataset.json`` holds, and the tables beside it by name."""

    document: bytes
    tables: dict[str, bytes]


def write_manifest(manifest: Manifest, url: str, options: Options = None) -> None:
    """Publish the dataset in the folder `url`: the very last step of writing one.

    What was kept of edits of a dataset that was there before goes with it.

    Raises:
        FormatError: If the manifest is not valid.
        SourceError: If a file cannot be written.
    """
    document, tables = manifest_files(manifest, url)
    wanted = {*tables, *(one.file for one in manifest.records.files)}
    for name, data in tables.items():
        write_atomic(join(url, name), data, options)
    write_atomic(join(url, FILE_NAME), document, options)
    for old in list_names(url, options) or ():
        if KEPT_NAME.fullmatch(old) or (TABLES_NAME.fullmatch(old) and old not in wanted):
            remove_quietly(join(url, old), options)
        elif MADE_BY_EDITS.fullmatch(old) and old not in {group.url for group in manifest.groups}:
            remove_folder(join(url, old), options)


def manifest_files(manifest: Manifest, url: str = "") -> ManifestFiles:
    """The files of a manifest.

    Args:
        manifest: The manifest.
        url: The folder that they are for: files of records that are there already are not among them.

    Raises:
        FormatError: If it is not valid.
    """
    manifest.check(FILE_NAME)
    columns, sources, num_sources = manifest.columns, manifest.sources.table, len(manifest.sources)
    sources.check(num_sources, columns.num_episodes, FILE_NAME)
    files: dict[str, bytes] = {}

    def beside(what: str, data: bytes) -> dict[str, Any]:
        about = _describe(what, data)
        files[about["file"]] = data
        return about

    statistics = None
    if manifest.statistics and manifest.statistics_split is not None:
        statistics = {"split": manifest.statistics_split, "features": manifest.statistics}
        if manifest.more.sketches:
            key = sketch_key(manifest.fingerprint, manifest.statistics)
            files[sketch_file(key)] = pack_sketches(key, manifest.more.sketches)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "writer": manifest.writer,
        "fingerprint": manifest.fingerprint,
        "num_shards": columns.num_shards,
        "num_episodes": columns.num_episodes,
        "num_steps": columns.num_steps,
        "num_bytes": int(columns.shard_bytes.sum()),
        "features": [feature.to_dict() for feature in manifest.features.values()],
        "splits": list(manifest.splits),
        "tables": beside("dataset", _pack_tables(manifest)),
        "sources": {**beside("sources", sources.to_bytes()), "count": num_sources} if num_sources else None,
        "statistics": statistics,
        "provenance": manifest.provenance,
    }
    if manifest.records:
        document["episodes"] = [one.to_dict() for one in manifest.records.files]
        new = [one for one in manifest.records.files if one.url != join(url, one.file)]
        files |= {one.file: one.load() for one in new}
    if manifest.groups != ONE_GROUP:
        document["groups"] = [group.to_dict() for group in manifest.groups]
    if len(manifest.history):
        document["history"] = {**beside("history", manifest.history.to_bytes()), "count": len(manifest.history)}
    if manifest.more.not_finite:
        document["not_finite"] = {name: counts.to_dict() for name, counts in manifest.more.not_finite.items()}
    return ManifestFiles(_as_json(document), files)


def _as_json(document: Mapping[str, Any]) -> bytes:
    """The file.

    Raises:
        FormatError: If it holds what no JSON file can: what others wrote is kept as it is, and may be anything.
    """

    def written(value: Any) -> bytes:
        return _fold_numbers(json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)).encode()

    try:
        return written(document)
    except ValueError as error:
        for name, value in document.items():
            with contextlib.suppress(ValueError):
                written(value)
                continue
            raise FormatError(
                f"{FILE_NAME}: {name}: {error}, wanted numbers and texts that JSON can hold. Correct it by hand."
            ) from error
        raise


def _describe(what: str, data: bytes) -> dict[str, Any]:
    """What ``dataset.json`` says of a file of tables."""
    digest = checksum(data)
    return {"file": f"{what}-{digest[:16]}.tables", "bytes": len(data), "checksum": digest}


def _fold_numbers(text: str) -> str:
    """Lists of numbers on one line: a shape or a mean is read across, not down. Texts may hold what looks like one."""
    number = r"-?\d[\d.eE+-]*|null"
    text_or_list = rf'"(?:[^"\\]|\\.)*"|\[\s+((?:(?:{number}),\s+)*(?:{number}))\s+\]'
    return re.sub(text_or_list, lambda m: m[0] if m[1] is None else f"[{' '.join(m[1].split())}]", text)


def _pack_tables(manifest: Manifest) -> bytes:
    columns = manifest.columns
    arrays: dict[str, NDArray[Any]] = {"names": Names.pack(columns.names)}
    arrays |= {name: getattr(columns, name) for name in (*OF_SHARDS, *OF_EPISODES)}
    more = [name for name in (*MORE_OF_SHARDS, *MORE_OF_EPISODES) if getattr(columns, name) is not None]
    arrays |= {name: getattr(columns, name) for name in more}
    if columns.range_offsets is not None and columns.ranges is not None:
        arrays |= {"range_offsets": columns.range_offsets, "ranges": columns.ranges}
    if len(columns.task_ids):
        arrays |= {"task_offsets": columns.task_offsets, "task_ids": columns.task_ids}
    tasks = manifest.tasks if isinstance(manifest.tasks, Texts) else Texts.of(manifest.tasks, FILE_NAME)
    arrays["tasks"], arrays["task_text_offsets"] = tasks.arrays
    counts = {"num_shards": columns.num_shards, "num_episodes": columns.num_episodes}
    return write_tables(KIND, counts, arrays)
