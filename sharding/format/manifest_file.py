"""``dataset.json`` and its tables: written atomically, the JSON last; read with every size and checksum compared.

The tables' file name carries their checksum. An overwrite that dies half-way leaves the old ``dataset.json`` beside
the old tables *and* the new ones, never an old one beside a new one under the same name.
"""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from epistream.errors import FormatError, SourceError, VersionError
from epistream.sharding.files.folder_hint import describe_folder
from epistream.sharding.files.storage import (
    Options,
    join,
    list_names,
    read_bytes,
    remove_quietly,
    write_atomic,
)
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.episode_meta import parse_json
from epistream.sharding.format.features import features_from_list
from epistream.sharding.format.manifest import Manifest, Source
from epistream.sharding.format.manifest_columns import OF_EPISODES, OF_SHARDS, ManifestColumns, default_ranges
from epistream.sharding.format.tables import Names, parse_tables, write_tables

_log = logging.getLogger(__name__)

FILE_NAME = "dataset.json"
FORMAT = "epistream-dataset"
VERSION = 1
KIND = "epistream.dataset-tables"
_REMEDY = "Re-create the manifest with 'epistream index URL', or pack again."
TABLES_NAME = re.compile(r"dataset-[0-9a-f]{8}\.tables")
_DTYPES = {"shard_checksums": np.uint8, "index_checksums": np.uint8, "shard_split": np.uint8}


class _Tables(pydantic.BaseModel):
    file: str = pydantic.Field(pattern=TABLES_NAME.pattern, max_length=40)
    bytes: int = pydantic.Field(ge=1)
    checksum: str


class _Statistics(pydantic.BaseModel):
    split: str
    features: dict[str, dict[str, Any]]


class _File(pydantic.BaseModel):
    """``dataset.json``. Unknown names are left out: what changes the meaning of a known one raises the version."""

    model_config = pydantic.ConfigDict(strict=True, frozen=True)

    format: Literal["epistream-dataset"]
    version: int
    writer: str
    fingerprint: str
    num_shards: int
    num_episodes: int
    num_steps: int
    features: list[dict[str, Any]]
    splits: list[str]
    tables: _Tables
    statistics: _Statistics | None = None
    provenance: dict[str, Any]


def write_manifest(manifest: Manifest, url: str, options: Options = None) -> None:
    """Publish the dataset in the folder `url`: the very last step of writing one.

    Raises:
        FormatError: If the manifest is not valid.
        SourceError: If a file cannot be written.
    """
    manifest.check(FILE_NAME)
    tables = _pack_tables(manifest)
    digest = checksum(tables)
    name = f"dataset-{digest[:8]}.tables"
    statistics = None
    if manifest.statistics and manifest.statistics_split is not None:
        statistics = {"split": manifest.statistics_split, "features": manifest.statistics}
    columns = manifest.columns
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
        "tables": {"file": name, "bytes": len(tables), "checksum": digest},
        "statistics": statistics,
        "provenance": manifest.provenance,
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomic(join(url, name), tables, options)
    write_atomic(join(url, FILE_NAME), _fold_numbers(text).encode(), options)
    for old in list_names(url, options) or ():
        if TABLES_NAME.fullmatch(old) and old != name:
            remove_quietly(join(url, old), options)


def _fold_numbers(text: str) -> str:
    """Lists of numbers on one line: a shape or a mean is read across, not down."""
    number = r"-?\d[\d.eE+-]*|null"
    return re.sub(rf"\[\s+((?:(?:{number}),\s+)*(?:{number}))\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)


def _pack_tables(manifest: Manifest) -> bytes:
    columns = manifest.columns
    arrays: dict[str, NDArray[Any]] = {"names": Names.pack(columns.names)}
    arrays |= {name: getattr(columns, name) for name in (*OF_SHARDS, *OF_EPISODES)}
    arrays["episode_source"] = manifest.episode_source
    offsets, ranges = default_ranges(columns.episode_length)
    if not (np.array_equal(offsets, columns.range_offsets) and np.array_equal(ranges, columns.ranges)):
        arrays |= {"range_offsets": columns.range_offsets, "ranges": columns.ranges}
    if len(columns.task_ids):
        arrays |= {"task_offsets": columns.task_offsets, "task_ids": columns.task_ids}
    sources = [[source.path, source.num_bytes, source.checksum] for source in manifest.sources]
    for name, value in (("tasks", list(manifest.tasks)), ("sources", sources)):
        arrays[name] = np.frombuffer(json.dumps(value, ensure_ascii=False).encode(), np.uint8)
    counts = {"num_shards": columns.num_shards, "num_episodes": columns.num_episodes}
    return write_tables(KIND, counts, arrays)


def read_manifest(url: str, options: Options = None) -> Manifest:
    """The manifest of the folder `url`.

    Raises:
        SourceError: If there is no ``dataset.json``; the message says what is there instead.
        VersionError: If it is of a later version.
        FormatError: If it is torn, or says anything that cannot be.
    """
    where = join(url, FILE_NAME)
    # Twice, because an overwrite may replace both files between reading the one and the other.
    for attempt in range(2):
        data = read_bytes(where, options)
        if data is None:
            raise SourceError(f"{where}: no such file. {describe_folder(url, options)}")
        document = _parse_document(data, where)
        name = document.tables.file
        tables = read_bytes(join(url, name), options)
        if tables is not None:
            return _build(document, tables, where, join(url, name))
        _log.debug("%s names %s, which is not there (attempt %d)", where, name, attempt)
    raise FormatError(f"{join(url, name)}: no such file, {FILE_NAME} wants it. {_REMEDY}")


def _parse_document(data: bytes, where: str) -> _File:
    value = parse_json(data, where)
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise FormatError(f'{where}: no manifest of ours, wanted a map with "format": "{FORMAT}". {_REMEDY}')
    if value.get("version") != VERSION:
        raise VersionError(
            f"{where}: format version {value.get('version')!r:.20}, wanted {VERSION}. Install a release of "
            f"epistream that knows it, or pack again."
        )
    try:
        return _File.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=True)[0]
        name = ".".join(map(str, first["loc"]))
        raise FormatError(f"{where}: {name}: {first['input']!r:.80}: {first['msg']}. {_REMEDY}") from error


def _build(document: _File, tables: bytes, where: str, tables_where: str) -> Manifest:
    if len(tables) != document.tables.bytes or checksum(tables) != document.tables.checksum:
        raise FormatError(
            f"{tables_where}: {len(tables)} bytes with checksum {checksum(tables)}, wanted "
            f"{document.tables.bytes} with {document.tables.checksum}. {_REMEDY}"
        )
    parsed = parse_tables(tables, KIND, tables_where, _REMEDY, verify_body=False)
    columns, episode_source = _read_columns(parsed.arrays, document, tables_where)
    tasks = _json_table(parsed.arrays, "tasks", tables_where)
    sources = _json_table(parsed.arrays, "sources", tables_where)
    if not all(isinstance(task, str) for task in tasks):
        raise FormatError(f"{tables_where}: tasks that are no texts. {_REMEDY}")
    statistics = document.statistics
    manifest = Manifest(
        features=features_from_list(document.features, where),
        splits=tuple(document.splits),
        columns=columns,
        episode_source=episode_source,
        tasks=tuple(tasks),
        statistics=statistics.features if statistics else {},
        statistics_split=statistics.split if statistics else None,
        sources=tuple(_source(value, tables_where) for value in sources),
        provenance=document.provenance,
        writer=document.writer,
    )
    manifest.check(where)
    if manifest.fingerprint != document.fingerprint or columns.num_steps != document.num_steps:
        raise FormatError(
            f"{where}: fingerprint {manifest.fingerprint} of {columns.num_steps} steps, the file says "
            f"{document.fingerprint:.40} of {document.num_steps}. {_REMEDY}"
        )
    return manifest


def _read_columns(
    arrays: Mapping[str, NDArray[Any]], document: _File, where: str
) -> tuple[ManifestColumns, NDArray[np.int64]]:
    """The columns, and the source of each episode."""

    def table(name: str) -> NDArray[Any]:
        wanted = np.dtype(_DTYPES.get(name, np.int64))
        array = arrays.get(name)
        num_axes = 2 if name in ("shard_checksums", "index_checksums", "ranges") else 1
        if array is None or array.dtype != wanted or array.ndim != num_axes:
            found = "missing" if array is None else f"{array.dtype} with {array.ndim} axes"
            raise FormatError(f"{where}: table {name!r} is {found}, wanted {wanted} with {num_axes}. {_REMEDY}")
        return array

    values = {name: table(name) for name in (*OF_SHARDS, *OF_EPISODES)}
    num_episodes, num_shards = document.num_episodes, document.num_shards
    if len(values["shard_bytes"]) != num_shards or len(values["episode_length"]) != num_episodes:
        raise FormatError(
            f"{where}: {len(values['shard_bytes'])} shards and {len(values['episode_length'])} episodes, "
            f"{FILE_NAME} says {num_shards} and {num_episodes}. {_REMEDY}"
        )
    if "ranges" in arrays:
        values |= {"range_offsets": table("range_offsets"), "ranges": table("ranges")}
    else:
        values["range_offsets"], values["ranges"] = default_ranges(values["episode_length"])
    if "task_ids" in arrays:
        values |= {"task_offsets": table("task_offsets"), "task_ids": table("task_ids")}
    else:
        values |= {"task_offsets": np.zeros(num_episodes + 1, np.int64), "task_ids": np.zeros(0, np.int64)}
    if "names" not in arrays:
        raise FormatError(f"{where}: table 'names' is missing. {_REMEDY}")
    columns = ManifestColumns(names=Names(arrays["names"], num_shards, where)[:], **values)
    return columns, table("episode_source")


def _json_table(arrays: Mapping[str, NDArray[Any]], name: str, where: str) -> list[Any]:
    value = parse_json(arrays[name].tobytes(), where) if name in arrays else None
    if not isinstance(value, list):
        raise FormatError(f"{where}: table {name!r} is no JSON list. {_REMEDY}")
    return value


def _source(value: object, where: str) -> Source:
    if isinstance(value, list) and list(map(type, value)) == [str, int, str]:
        return Source(*value)
    raise FormatError(f"{where}: source {value!r:.80}, wanted [path, bytes, checksum]. {_REMEDY}")
