"""``dataset.json``, its tables and its sources: written atomically, the JSON last; read with every checksum compared.

The names of tables carry their checksums. An overwrite that dies half-way leaves the old ``dataset.json`` beside
the old tables *and* the new ones, never an old one beside a new one under the same name. Sources are as many as
episodes and nothing that streams needs them: they are read when somebody looks.
"""

import logging
import re
import shlex
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pydantic

from epistream.errors import FormatError, SourceError, VersionError
from epistream.sharding.files.folder_hint import describe_folder
from epistream.sharding.files.foreign import stand_in
from epistream.sharding.files.storage import Options, is_there, join, list_names, read_bytes
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.episode_meta import parse_json
from epistream.sharding.format.features import features_from_list
from epistream.sharding.format.statistics import not_finite_of
from epistream.sharding.format.tables import parse_tables
from epistream.sharding.format.texts import Texts
from epistream.sharding.manifest.dataset_statistics import (
    Loaded,
    MoreStatistics,
    Plain,
    read_sketches,
    sketch_key,
)
from epistream.sharding.manifest.episode_records import REMEDY as RECORDS_REMEDY
from epistream.sharding.manifest.groups import ONE_GROUP, groups_from
from epistream.sharding.manifest.history import NO_HISTORY, History, parse_lines
from epistream.sharding.manifest.history import REMEDY as HISTORY_REMEDY
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.manifest.manifest_arrays import REMEDY as _REMEDY
from epistream.sharding.manifest.manifest_arrays import ManifestArrays, columns_of
from epistream.sharding.manifest.sources import NO_SOURCES, REMEDY, Sources, SourceTable, sources_of_json
from epistream.sharding.manifest.stored_records import Records, RecordsFile

_log = logging.getLogger(__name__)

FILE_NAME = "dataset.json"
FORMAT = "epistream-dataset"
VERSION = 3
_VERSIONS = (1, 2, 3)
KIND = "epistream.dataset-tables"
TABLES_NAME = re.compile(r"(?:dataset|sources|statistics|history|episodes)-[0-9a-f]{8}(?:[0-9a-f]{8})?\.tables")
# What ``dataset.json`` was and is, under the fingerprint, of datasets that were edited.
KEPT_NAME = re.compile(r"manifest-[0-9a-f]{32}\.json")
# Episodes, edits and records are fewer; Python takes no length beyond 2**63.
_MOST_COUNTED = 1 << 48
# Features, statistics and provenance: what grows with the episodes is in the tables, whose sizes it tells.
MOST_BYTES = 64 << 20


class _Tables(pydantic.BaseModel):
    """A file of tables beside ``dataset.json``."""

    file: str = pydantic.Field(pattern=f"^{TABLES_NAME.pattern}$", max_length=50)
    bytes: int = pydantic.Field(ge=1)
    checksum: str


class _Sources(_Tables):
    count: int = pydantic.Field(ge=1, le=_MOST_COUNTED)


class _History(_Tables):
    count: int = pydantic.Field(ge=1, le=_MOST_COUNTED)


class _Episodes(_Tables):
    count: int = pydantic.Field(ge=1, le=_MOST_COUNTED)
    renamed: dict[str, str] = {}


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
    groups: list[Any] | None = None
    history: _History | None = None
    episodes: list[_Episodes] = []
    statistics: _Statistics | None = None
    not_finite: dict[str, Any] = {}
    provenance: dict[str, Any]


def kept_file(fingerprint: str) -> str:
    """The name of the file that keeps the manifest of a dataset that was edited, as it was under a fingerprint."""
    return f"manifest-{fingerprint}.json"


def read_manifest(url: str, options: Options = None, fingerprint: str = "") -> Manifest:
    """The manifest of the folder `url`: that of now, or of a fingerprint that it had before an edit.

    Args:
        url: The folder.
        options: For fsspec.
        fingerprint: All of it, or where the folder can be listed its first digits.

    Raises:
        SourceError: If there is no ``dataset.json``, or none of that fingerprint; the message says what is there.
        VersionError: If it is of a later version.
        FormatError: If it is torn, or says anything that cannot be.
    """
    found = find_manifest(url, options, fingerprint)
    if found is None:
        raise SourceError(f"{join(url, FILE_NAME)}: no such file. {describe_folder(url, options)}")
    return found


def find_manifest(url: str, options: Options = None, fingerprint: str = "") -> Manifest | None:
    """As `read_manifest`, but None if there is no ``dataset.json``."""
    file = _file_of(fingerprint, url, options) if fingerprint else FILE_NAME
    # Twice, because an overwrite may replace both files between reading the one and the other.
    for attempt in range(2):
        data = read_bytes(join(url, file), options, MOST_BYTES)
        if data is None:
            return None
        document = _parse_document(data, join(url, file))
        name = document.tables.file
        tables = read_bytes(join(url, name), options, size=document.tables.bytes)
        if tables is not None:
            found = _build(document, tables, url, options)
            if not found.fingerprint.startswith(fingerprint):
                raise FormatError(
                    f"{join(url, file)}: of fingerprint {found.fingerprint}, wanted {fingerprint}. Copy it again."
                )
            return found
        _log.debug("%s names %s, which is not there (attempt %d)", join(url, file), name, attempt)
    raise FormatError(f"{join(url, name)}: no such file, {file} wants it. {_REMEDY}")


def parse_manifest(data: bytes, url: str, options: Options = None) -> Manifest:
    """The manifest that the contents of a ``dataset.json`` in the folder `url` describe.

    Raises:
        FormatError, VersionError, SourceError: As `read_manifest`.
    """
    document = _parse_document(data, join(url, FILE_NAME))
    tables = read_bytes(join(url, document.tables.file), options, size=document.tables.bytes)
    if tables is None:
        raise FormatError(f"{join(url, document.tables.file)}: no such file, {FILE_NAME} wants it. {_REMEDY}")
    return _build(document, tables, url, options)


def files_named(data: bytes, where: str) -> set[str]:
    """The tables beside a ``dataset.json`` that its contents name: whatever they are called, of any release.

    Raises:
        VersionError, FormatError: If it is none of ours.
    """
    document = _parse_document(data, where)
    named = [document.tables, document.sources, document.history, *document.episodes]
    files = {one.file for one in named if one is not None}
    if document.statistics is not None:
        files.add(sketch_file(sketch_key(document.fingerprint, document.statistics.features)))
    return files


def _file_of(fingerprint: str, url: str, options: Options) -> str:
    """The file whose manifest has this fingerprint, or one that begins so."""
    if is_there(join(url, kept_file(fingerprint)), options):
        return kept_file(fingerprint)
    known = {
        name.removeprefix("manifest-").removesuffix(".json"): name
        for name in list_names(url, options) or ()
        if KEPT_NAME.fullmatch(name)
    }
    data = read_bytes(join(url, FILE_NAME), options, MOST_BYTES)
    if data is not None:
        known[_parse_document(data, join(url, FILE_NAME)).fingerprint] = FILE_NAME
    found = [name for known_fingerprint, name in known.items() if known_fingerprint.startswith(fingerprint)]
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} manifests" if found else "no manifest"
    raise SourceError(
        f"{url}@{fingerprint}: {what} of a fingerprint that begins so is kept there, wanted one. "
        f"A prune drops them. See those that are: epistream edit log {shlex.quote(url)}"
    )


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
            f"{where}: {len(data)} bytes with checksum {digest}, wanted {about.bytes} with {about.checksum:.40}. "
            f"{remedy}"
        )


def _build(document: _File, tables: bytes, url: str, options: Options) -> Manifest:
    where, tables_where = join(url, FILE_NAME), join(url, document.tables.file)
    _compare(tables, document.tables, tables_where, _REMEDY)
    arrays = ManifestArrays(parse_tables(tables, KIND, tables_where, _REMEDY, verify_body=False).arrays, tables_where)
    columns = columns_of(arrays, document.num_shards, document.num_episodes, is_view=document.version != 1)
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
        records=_records(document.episodes, url, options),
        groups=groups_from(document.groups, url, where) if document.groups else ONE_GROUP,
        history=_history(document.history, url, options) if document.history else NO_HISTORY,
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


def _records(files: Sequence[_Episodes], url: str, options: Options) -> Records:
    return Records(
        [
            RecordsFile(
                one.file,
                one.bytes,
                one.checksum,
                one.count,
                partial(_read_beside, one, f"the {one.count:,} records", url, options, RECORDS_REMEDY),
                join(url, one.file),
                one.renamed,
            )
            for one in files
        ]
    )


def _history(about: _History, url: str, options: Options) -> History:
    return History(partial(_read_history, about, url, options), about.count)


def _read_history(about: _History, url: str, options: Options) -> Texts:
    data = _read_beside(about, "the history", url, options, HISTORY_REMEDY)
    return parse_lines(data, about.count, join(url, about.file))


def _read_beside(about: _Tables, wanted: str, url: str, options: Options, remedy: str) -> bytes:
    """A file of tables that nothing which streams needs, compared with what the manifest says of it."""
    where = join(url, about.file)
    data = read_bytes(where, options, size=about.bytes)
    if data is None:
        raise FormatError(f"{where}: no such file, wanted {wanted} of {FILE_NAME}. {remedy}")
    _compare(data, about, where, remedy)
    return data


def _read_sketches(fingerprint: str, statistics: Plain, url: str, options: Options) -> Loaded | None:
    key = sketch_key(fingerprint, statistics)
    return read_sketches(join(url, sketch_file(key)), key, statistics, options)


def sketch_file(key: str) -> str:
    """Named after what it is of: beside another manifest it is nobody's, and the manifest need not name it."""
    return f"statistics-{key[:8]}.tables"


def _read_sources(about: _Sources, num_episodes: int, url: str, options: Options) -> SourceTable:
    """The sources from their own file."""
    where, data = join(url, about.file), _read_beside(about, f"the {about.count:,} sources", url, options, REMEDY)
    table = SourceTable.parse(data, where)
    table.check(about.count, num_episodes, where)
    return table


def _stored_with_the_rest(arrays: ManifestArrays, document: _File) -> SourceTable:
    """The sources of a manifest of version 1."""
    table = sources_of_json(arrays.get("sources", np.uint8).tobytes(), arrays.get("episode_source"), arrays.where)
    table.check(len(table.num_bytes), document.num_episodes, arrays.where)
    return table
