"""``dataset.json``, its tables and its sources: written atomically, the JSON last; read with every checksum compared.

The names of tables carry their checksums. An overwrite that dies half-way leaves the old ``dataset.json`` beside
the old tables *and* the new ones, never an old one beside a new one under the same name. Sources are as many as
episodes and nothing that streams needs them: they are read when somebody looks.
"""

import json
import logging
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np
import pydantic
from numpy.typing import NDArray

from epistream.errors import FormatError, SourceError, VersionError
from epistream.sharding.files.folder_hint import describe_folder
from epistream.sharding.files.foreign import stand_in
from epistream.sharding.files.storage import Options, join, list_names, read_bytes, remove_quietly, write_atomic
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.dataset_statistics import (
    Loaded,
    MoreStatistics,
    Plain,
    pack_sketches,
    read_sketches,
    sketch_key,
)
from epistream.sharding.format.episode_meta import parse_json
from epistream.sharding.format.features import features_from_list
from epistream.sharding.format.manifest import Manifest
from epistream.sharding.format.manifest_columns import OF_EPISODES, OF_SHARDS, ManifestColumns
from epistream.sharding.format.sources import NO_SOURCES, REMEDY, Sources, SourceTable, sources_of_json
from epistream.sharding.format.statistics import not_finite_of
from epistream.sharding.format.tables import Names, parse_tables, write_tables
from epistream.sharding.format.texts import Texts

_log = logging.getLogger(__name__)

FILE_NAME = "dataset.json"
FORMAT = "epistream-dataset"
VERSION = 2
_VERSIONS = (1, 2)
KIND = "epistream.dataset-tables"
_REMEDY = "Re-create the manifest with 'epistream index URL --overwrite', or pack again."
TABLES_NAME = re.compile(r"(?:dataset|sources|statistics)-[0-9a-f]{8}\.tables")
# Features, statistics and provenance: what grows with the episodes is in the tables, whose sizes it tells.
_MOST_BYTES = 64 << 20
_DTYPES = {"shard_checksums": np.uint8, "index_checksums": np.uint8, "shard_split": np.uint8}


class _Tables(pydantic.BaseModel):
    """A file of tables beside ``dataset.json``."""

    file: str = pydantic.Field(pattern=f"^{TABLES_NAME.pattern}$", max_length=40)
    bytes: int = pydantic.Field(ge=1)
    checksum: str


class _Sources(_Tables):
    count: int = pydantic.Field(ge=1)


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
    sources: _Sources | None = None
    statistics: _Statistics | None = None
    not_finite: dict[str, Any] = {}
    provenance: dict[str, Any]


def write_manifest(manifest: Manifest, url: str, options: Options = None) -> None:
    """Publish the dataset in the folder `url`: the very last step of writing one.

    Raises:
        FormatError: If the manifest is not valid.
        SourceError: If a file cannot be written.
    """
    manifest.check(FILE_NAME)
    columns, sources, num_sources = manifest.columns, manifest.sources.table, len(manifest.sources)
    sources.check(num_sources, columns.num_episodes, FILE_NAME)
    packed = _pack_tables(manifest)
    about_tables, about_sources = _describe("dataset", packed), None
    files = {about_tables["file"]: packed}
    if num_sources:
        packed = sources.to_bytes()
        about_sources = {**_describe("sources", packed), "count": num_sources}
        files[about_sources["file"]] = packed
    statistics = None
    if manifest.statistics and manifest.statistics_split is not None:
        statistics = {"split": manifest.statistics_split, "features": manifest.statistics}
        if manifest.more.sketches:
            key = sketch_key(manifest.fingerprint, manifest.statistics)
            files[_sketch_file(key)] = pack_sketches(key, manifest.more.sketches)
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
        "tables": about_tables,
        "sources": about_sources,
        "statistics": statistics,
        "provenance": manifest.provenance,
    }
    if manifest.more.not_finite:
        document["not_finite"] = {name: counts.to_dict() for name, counts in manifest.more.not_finite.items()}
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    for name, data in files.items():
        write_atomic(join(url, name), data, options)
    write_atomic(join(url, FILE_NAME), _fold_numbers(text).encode(), options)
    for old in list_names(url, options) or ():
        if TABLES_NAME.fullmatch(old) and old not in files:
            remove_quietly(join(url, old), options)


def _describe(what: str, data: bytes) -> dict[str, Any]:
    """What ``dataset.json`` says of a file of tables."""
    digest = checksum(data)
    return {"file": f"{what}-{digest[:8]}.tables", "bytes": len(data), "checksum": digest}


def _sketch_file(key: str) -> str:
    """Named after what it is of: beside another manifest it is nobody's, and the manifest need not name it."""
    return f"statistics-{key[:8]}.tables"


def _fold_numbers(text: str) -> str:
    """Lists of numbers on one line: a shape or a mean is read across, not down."""
    number = r"-?\d[\d.eE+-]*|null"
    return re.sub(rf"\[\s+((?:(?:{number}),\s+)*(?:{number}))\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)


def _pack_tables(manifest: Manifest) -> bytes:
    columns = manifest.columns
    arrays: dict[str, NDArray[Any]] = {"names": Names.pack(columns.names)}
    arrays |= {name: getattr(columns, name) for name in (*OF_SHARDS, *OF_EPISODES)}
    if columns.range_offsets is not None and columns.ranges is not None:
        arrays |= {"range_offsets": columns.range_offsets, "ranges": columns.ranges}
    if len(columns.task_ids):
        arrays |= {"task_offsets": columns.task_offsets, "task_ids": columns.task_ids}
    tasks = manifest.tasks if isinstance(manifest.tasks, Texts) else Texts.of(manifest.tasks, FILE_NAME)
    arrays["tasks"], arrays["task_text_offsets"] = tasks.arrays
    counts = {"num_shards": columns.num_shards, "num_episodes": columns.num_episodes}
    return write_tables(KIND, counts, arrays)


def read_manifest(url: str, options: Options = None) -> Manifest:
    """The manifest of the folder `url`.

    Raises:
        SourceError: If there is no ``dataset.json``; the message says what is there instead.
        VersionError: If it is of a later version.
        FormatError: If it is torn, or says anything that cannot be.
    """
    found = find_manifest(url, options)
    if found is None:
        raise SourceError(f"{join(url, FILE_NAME)}: no such file. {describe_folder(url, options)}")
    return found


def find_manifest(url: str, options: Options = None) -> Manifest | None:
    """As `read_manifest`, but None if there is no ``dataset.json``."""
    where = join(url, FILE_NAME)
    # Twice, because an overwrite may replace both files between reading the one and the other.
    for attempt in range(2):
        data = read_bytes(where, options, _MOST_BYTES)
        if data is None:
            return None
        document = _parse_document(data, where)
        name = document.tables.file
        tables = read_bytes(join(url, name), options, size=document.tables.bytes)
        if tables is not None:
            return _build(document, tables, url, options)
        _log.debug("%s names %s, which is not there (attempt %d)", where, name, attempt)
    raise FormatError(f"{join(url, name)}: no such file, {FILE_NAME} wants it. {_REMEDY}")


def _parse_document(data: bytes, where: str) -> _File:
    try:
        value = parse_json(data, where)
    except FormatError as error:
        raise FormatError(f"{error} {_REMEDY}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise FormatError(f'{where}: no manifest of ours, wanted a map with "format": "{FORMAT}". {_REMEDY}')
    if value.get("version") not in _VERSIONS:
        raise VersionError(
            f"{where}: format version {value.get('version')!r:.20}, wanted {' or '.join(map(str, _VERSIONS))}. "
            "Install a release of epistream that knows it, or pack again."
        )
    try:
        return _File.model_validate(value)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=True)[0]
        name = ".".join(map(str, first["loc"]))
        raise FormatError(f"{where}: {name}: {first['input']!r:.80}: {first['msg']}. {_REMEDY}") from error


def _compare(data: bytes, about: _Tables, where: str, remedy: str) -> None:
    """See that a file is the one that ``dataset.json`` means."""
    foreign = stand_in(data[:512])
    if foreign:
        raise FormatError(f"{where}: {foreign.what}, wanted tables of ours. {foreign.advice}")
    digest = checksum(data)
    if len(data) != about.bytes or digest != about.checksum:
        raise FormatError(
            f"{where}: {len(data)} bytes with checksum {digest}, wanted {about.bytes} with {about.checksum}. {remedy}"
        )


def _build(document: _File, tables: bytes, url: str, options: Options) -> Manifest:
    where, tables_where = join(url, FILE_NAME), join(url, document.tables.file)
    _compare(tables, document.tables, tables_where, _REMEDY)
    arrays = _Arrays(parse_tables(tables, KIND, tables_where, _REMEDY, verify_body=False).arrays, tables_where)
    columns = _read_columns(arrays, document)
    if document.version == 1:  # lists of both were JSON, and all in one file
        tasks = arrays.json_texts("tasks")
        sources = Sources(partial(_stored_with_the_rest, arrays, document), document.tables.file)
    else:
        tasks = Texts(arrays.get("tasks", np.uint8), arrays.get("task_text_offsets"), tables_where, _REMEDY)
        about, sources = document.sources, NO_SOURCES
        if about is not None:
            sources = Sources(partial(_read_sources, about, columns.num_episodes, url, options), about.file)
    statistics = document.statistics
    manifest = Manifest(
        features=features_from_list(document.features, where),
        splits=tuple(document.splits),
        columns=columns,
        tasks=tasks,
        statistics=statistics.features if statistics else {},
        statistics_split=statistics.split if statistics else None,
        more=_more_statistics(document, url, options),
        sources=sources,
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


def _more_statistics(document: _File, url: str, options: Options) -> MoreStatistics:
    try:
        not_finite = not_finite_of(document.not_finite)
    except ValueError as error:
        raise FormatError(f"{join(url, FILE_NAME)}: not_finite: {error}. {_REMEDY}") from error
    if document.statistics is None:
        return MoreStatistics(not_finite=not_finite)
    statistics = document.statistics.features
    return MoreStatistics(partial(_read_sketches, document.fingerprint, statistics, url, options), not_finite)


def _read_sketches(fingerprint: str, statistics: Plain, url: str, options: Options) -> Loaded | None:
    key = sketch_key(fingerprint, statistics)
    return read_sketches(join(url, _sketch_file(key)), key, statistics, options)


def _read_columns(arrays: "_Arrays", document: _File) -> ManifestColumns:
    values = {name: arrays.get(name, _DTYPES.get(name, np.int64)) for name in (*OF_SHARDS, *OF_EPISODES)}
    num_episodes, num_shards = document.num_episodes, document.num_shards
    if len(values["shard_bytes"]) != num_shards or len(values["episode_length"]) != num_episodes:
        raise FormatError(
            f"{arrays.where}: {len(values['shard_bytes'])} shards and {len(values['episode_length'])} episodes, "
            f"{FILE_NAME} says {num_shards} and {num_episodes}. {_REMEDY}"
        )
    if "ranges" in arrays:
        values |= {"range_offsets": arrays.get("range_offsets"), "ranges": arrays.get("ranges")}
    if "task_ids" in arrays:
        values |= {"task_offsets": arrays.get("task_offsets"), "task_ids": arrays.get("task_ids")}
    else:
        values |= {"task_offsets": np.zeros(num_episodes + 1, np.int64), "task_ids": np.zeros(0, np.int64)}
    if document.version == 1:  # two thirds of that file may be sources, which views would keep in memory
        values = {name: array.copy() for name, array in values.items()}
    return ManifestColumns(names=Names(arrays.get("names", np.uint8), num_shards, arrays.where)[:], **values)


def _read_sources(about: _Sources, num_episodes: int, url: str, options: Options) -> SourceTable:
    """The sources from their own file."""
    where = join(url, about.file)
    data = read_bytes(where, options, size=about.bytes)
    if data is None:
        raise FormatError(f"{where}: no such file, wanted the {about.count:,} sources of {FILE_NAME}. {REMEDY}")
    _compare(data, about, where, REMEDY)
    table = SourceTable.parse(data, where)
    table.check(about.count, num_episodes, where)
    return table


def _stored_with_the_rest(arrays: "_Arrays", document: _File) -> SourceTable:
    """The sources of a manifest of version 1."""
    table = sources_of_json(arrays.get("sources", np.uint8).tobytes(), arrays.get("episode_source"), arrays.where)
    table.check(len(table.num_bytes), document.num_episodes, arrays.where)
    return table


class _Arrays:
    """The tables of a manifest by name, each compared with what it should be when it is asked for."""

    def __init__(self, arrays: Mapping[str, NDArray[Any]], where: str) -> None:
        self._arrays, self.where = arrays, where

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def get(self, name: str, dtype: type[np.generic] = np.int64) -> NDArray[Any]:
        """The table `name`.

        Raises:
            FormatError: If it is not there, or of another dtype or number of axes.
        """
        array = self._arrays.get(name)
        num_axes = 2 if name in ("shard_checksums", "index_checksums", "ranges") else 1
        if array is None or array.dtype != dtype or array.ndim != num_axes:
            found = "missing" if array is None else f"{array.dtype} with {array.ndim} axes"
            raise FormatError(
                f"{self.where}: table {name!r} is {found}, wanted {np.dtype(dtype)} with {num_axes}. {_REMEDY}"
            )
        return array

    def json_texts(self, name: str) -> Texts:
        """The table `name` that holds a JSON list of texts."""
        value = parse_json(self.get(name, np.uint8).tobytes(), self.where)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise FormatError(f"{self.where}: {name} that are no JSON list of texts. {_REMEDY}")
        return Texts.of(value, self.where)
