"""The folder or URL that a packing job writes to: locked, cleaned, and never looking finished before it is."""

import contextlib
import json
import logging
import re
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from epistream.access import Access
from epistream.errors import (
    DatasetExistsError,
    DeadlineError,
    EpistreamError,
    FormatError,
    OptionError,
    PackError,
    WorkerError,
)
from epistream.file_systems import ask, limit_of, local_path, open_file_system
from epistream.sharding.files.locks import locked
from epistream.sharding.files.names import index_name
from epistream.sharding.files.sources import folder_access
from epistream.sharding.files.storage import Options, is_there, join, list_names, remove_quietly
from epistream.sharding.format.manifest_file import FILE_NAME, TABLES_NAME, read_manifest
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.tar.tar_writer import write_error
from epistream.working_folder import absolute

_log = logging.getLogger(__name__)

JOB_FILE = ".pack-job.json"
LOCK_FILE = ".pack.lock"
# What a job leaves for the one that resumes it: its scans, the results of shards, and the statistics of the first ones.
# Names of files that no reader and no glob takes for a shard begin with a dot.
SCANS_FILE = ".pack-scans"
STATISTICS_FILE = ".pack-statistics"
_OURS = re.compile(r"(shard-(?:r\d+-)?)\d{6,}\.(?:tar|index)")
_KEPT = re.compile(r"\.shard-(?:r\d+-)?\d{6,}\.(?:result|statistics)|\.pack-(?:scans|statistics)")
_ATOMIC = f"{_KEPT.pattern}|{TABLES_NAME.pattern}|{re.escape(FILE_NAME)}"  # temporary names have a process' number
_TEMPORARY = re.compile(rf"\.shard-(?:r\d+-)?\d{{6,}}\.(?:tar|index)\.tmp|\.(?:{_ATOMIC})\.\d+\.tmp")


def kept_name(shard_name: str, what: str) -> str:
    """``shard-000012.tar`` -> ``.shard-000012.result``."""
    return f".{shard_name.removesuffix('.tar')}.{what}"


@dataclass
class Workspace:
    """Where a job writes. Use as a context manager; leaving it ends the lock.

    Shards of an overwriting job get another prefix (``shard-r1-``), so that the old dataset stays whole until the
    new manifest takes its place.

    Args:
        url: A folder or URL, without what opens it.
        options: Of the job.
        storage_options: For `url`, and what opens it.
    """

    url: str
    options: PackOptions
    storage_options: Access
    folder: Path = field(init=False)
    prefix: str = field(init=False, default="shard-")
    _held: contextlib.ExitStack = field(init=False)
    _names: set[str] = field(init=False, default_factory=set)

    @classmethod
    def at(cls, url: str, options: PackOptions, storage_options: Options) -> "Workspace":
        """That of a URL as the user gave it.

        Raises:
            OptionError: If `storage_options` are none.
        """
        folder, access = folder_access(url, storage_options)
        return cls(folder, options, access)

    @property
    def is_remote(self) -> bool:
        """Whether shards are made in a temporary folder and uploaded."""
        return local_path(self.url) is None

    @property
    def was_complete(self) -> bool:
        """Whether there was a dataset, and no unfinished job, when the job began.

        A job that died after its manifest was in place has nothing left to do but to clean up.
        """
        if FILE_NAME not in self._names or JOB_FILE not in self._names:
            return FILE_NAME in self._names
        job = self._read_job()
        return job is not None and job["prefix"] in self._published_prefixes()

    def __enter__(self) -> "Workspace":
        local = local_path(self.url)
        with contextlib.ExitStack() as held:
            if local is None:
                if self.options.resume:
                    raise OptionError(f"{self.url}: resume works on local folders only. Use overwrite.")
                temporary = tempfile.TemporaryDirectory(prefix="epistream-pack-", ignore_cleanup_errors=True)
                self.folder = Path(held.enter_context(temporary))
            else:
                absolute(local)  # where that cannot be told, nothing can be made
                self.folder = local
                self._make_folder(held)
                self._take_lock(held)
            self._names = set(list_names(self.url, self.storage_options) or ())
            self._refuse_what_is_there()
            self._held = held.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def begin(self, identity: Mapping[str, str]) -> bool:
        """Clean up after an interrupted job, or take it up; True if shards of it may be complete.

        Raises:
            PackError: If it was of other sources or options.
        """
        if self.is_remote:
            self._choose_prefix()
            return False
        job = self._read_job()
        self._remove_local(_TEMPORARY)
        if self.options.resume and job is not None:
            changed = [name for name, value in identity.items() if job["identity"].get(name) != value]
            if changed:
                raise PackError(
                    f"{self.url}: the unfinished job there had other {' and '.join(changed)}, wanted the same to "
                    "resume. Give them as before, or begin again with --overwrite."
                )
            self.prefix = job["prefix"]
            return True
        if job is not None and job["prefix"] not in self._published_prefixes():
            # An interrupted job may have got as far as its manifest: then its shards are the dataset.
            self._remove_shards(job["prefix"])
        self._remove_local(_KEPT)
        self._names = set(list_names(self.url) or ())
        self._choose_prefix()
        self._write_job({"identity": dict(identity), "prefix": self.prefix})
        return False

    def shard_name(self, number: int) -> str:
        """File name of a shard of this job."""
        return f"{self.prefix}{number:06d}.tar"

    def abandon(self, *, keep_complete: bool) -> None:
        """Take everything of this job away again; with `keep_complete` only what is not complete.

        An error can come after the manifest is in place: then the shards are a dataset's, and nothing is removed.
        """
        if not self.is_remote:
            self._remove_local(_TEMPORARY)
        if self.prefix in self._published_prefixes() or (keep_complete and not self.is_remote):
            return
        if not self.is_remote:
            self._remove_local(_KEPT)
        self._remove_shards(self.prefix)
        for name in list_names(self.url, self.storage_options) or ():
            if TABLES_NAME.fullmatch(name) and name not in self._names:
                remove_quietly(join(self.url, name), self.storage_options)
        (self.folder / JOB_FILE).unlink(missing_ok=True)

    @property
    def has_job(self) -> bool:
        """Whether an earlier job left something to take up or to clean up."""
        return JOB_FILE in self._names

    def conclude(self, shard_names: Iterable[str]) -> None:
        """After the manifest is published: remove what an older dataset or an interrupted job left."""
        current = {name for shard in shard_names for name in (shard, index_name(shard))}
        if FILE_NAME in self._names or not self.is_remote:
            for name in sorted(self._names - current):
                if _OURS.fullmatch(name):
                    remove_quietly(join(self.url, name), self.storage_options)
        if not self.is_remote:
            self._remove_local(_KEPT)
        # Last: as long as it is there, whoever resumes comes back here.
        (self.folder / JOB_FILE).unlink(missing_ok=True)

    def _make_folder(self, held: contextlib.ExitStack) -> None:
        missing = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PackError(
                f"{self.folder}: cannot be made ({error.strerror}), wanted a folder. Choose another."
            ) from error
        held.callback(_remove_empty, missing)

    def _take_lock(self, held: contextlib.ExitStack) -> None:
        path = self.folder / LOCK_FILE
        try:
            held.enter_context(locked(path, 0.0))
        except TimeoutError as error:
            raise PackError(
                f"{self.url}: another packing job writes there, wanted it alone. Wait for it to end."
            ) from error
        except OSError as error:
            raise PackError(f"{path}: cannot be written ({error.strerror}). Check room and permissions.") from error
        # Removed while the lock is held: who opened it meanwhile notices that it is nobody's any more.
        held.callback(path.unlink, missing_ok=True)

    def _refuse_what_is_there(self) -> None:
        """What is in the folder already must be meant: a dataset, an unfinished job, or tars of somebody else."""
        has_dataset = is_there(join(self.url, FILE_NAME), self.storage_options)
        if has_dataset:
            self._names.add(FILE_NAME)
            if not self.options.overwrite and not self.options.resume:
                raise DatasetExistsError(
                    f"{self.url}: holds a dataset already. Choose another folder, or replace it with --overwrite."
                )
            return
        shards = sorted(name for name in self._names if _OURS.fullmatch(name))
        if JOB_FILE in self._names:
            if not self.options.overwrite and not self.options.resume:
                raise DatasetExistsError(
                    f"{self.url}: holds an unfinished packing job with {len(shards) // 2} complete shards. "
                    "Finish it with --resume, or begin again with --overwrite."
                )
        elif shards:
            raise DatasetExistsError(
                f"{self.url}: holds {shards[0]} and no {FILE_NAME}. Choose another folder; "
                "if those shards are wanted, 'epistream index' makes them a dataset."
            )

    def _choose_prefix(self) -> None:
        taken = _prefixes(self._names) | self._published_prefixes()
        number = 0
        while self.prefix in taken:
            number += 1
            self.prefix = f"shard-r{number}-"

    def _write_job(self, job: Mapping[str, Any]) -> None:
        path = self.folder / JOB_FILE
        temporary = self.folder / f"{JOB_FILE}.tmp"
        try:
            temporary.write_text(json.dumps(job))
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise write_error(path, 0, error) from error

    def _read_job(self) -> dict[str, Any] | None:
        with contextlib.suppress(OSError, ValueError):
            job = json.loads((self.folder / JOB_FILE).read_bytes())
            if (
                isinstance(job, dict)
                and isinstance(job.get("identity"), dict)
                and _OURS.fullmatch(f"{job.get('prefix')}000000.tar")
            ):
                return job
        return None

    def _published_prefixes(self) -> set[str]:
        """Prefixes of the shards of the dataset that is there; all, if its manifest cannot be understood."""
        if not is_there(join(self.url, FILE_NAME), self.storage_options):
            return set()
        try:
            names = read_manifest(self.url, self.storage_options).columns.names
        except FormatError:
            names = sorted(self._names)
        return _prefixes(names)

    def _remove_shards(self, prefix: str) -> None:
        for name in list_names(self.url, self.storage_options) or ():
            if _prefixes([name]) == {prefix}:
                remove_quietly(join(self.url, name), self.storage_options)

    def _remove_local(self, pattern: re.Pattern[str]) -> None:
        for name in list_names(self.url) or ():
            if pattern.fullmatch(name) or name == f"{JOB_FILE}.tmp":
                (self.folder / name).unlink(missing_ok=True)


def can_be_resumed(error: BaseException) -> bool:
    """After what was no fault of the data the complete shards stay, for ``resume``."""
    return not isinstance(error, EpistreamError) or isinstance(error, WorkerError | DeadlineError)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders from the innermost on, as far as nothing is in them."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _prefixes(names: Iterable[str]) -> set[str]:
    """What shards and indexes of packing jobs begin with, of those among some files."""
    return {match[1] for name in names if (match := _OURS.fullmatch(name))}


def upload(path: Path, url: str, storage_options: Options) -> None:
    """Copy a finished file into the folder `url`; object stores show it when it is whole.

    Raises:
        PackError: If it cannot be written.
    """
    target = join(url, path.name)
    try:
        file_system, remote = open_file_system(target, storage_options)
        ask(file_system, "makedirs", remote.rsplit("/", 1)[0], exist_ok=True)
        ask(file_system, "put_file", str(path), remote, limit_s=limit_of(path.stat().st_size))
    except EpistreamError:
        raise
    except Exception as error:  # each file system of fsspec has errors of its own
        raise PackError(
            f"{target}: {type(error).__name__}: {error}, wanted to upload {path.stat().st_size:,} bytes. "
            "Check access and storage_options."
        ) from error
