"""The folder or URL that a packing job writes to: locked, cleaned, and never looking finished before it is."""

import contextlib
import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from epistream.access import Access
from epistream.errors import (
    DatasetExistsError,
    DeadlineError,
    EpistreamError,
    FormatError,
    PackError,
    WorkerError,
)
from epistream.file_systems import local_path
from epistream.sharding.files.locks import locked, shared_lock
from epistream.sharding.files.names import index_name
from epistream.sharding.files.sources import folder_access
from epistream.sharding.files.storage import Options, is_there, join, list_names, remove_quietly
from epistream.sharding.manifest.manifest_file import FILE_NAME, TABLES_NAME, read_manifest
from epistream.sharding.pack.job_note import JOB_FILE, JobNote, read_note, write_note
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.tar.shard_store import Store
from epistream.working_folder import absolute

_log = logging.getLogger(__name__)

LOCK_FILE = ".pack.lock"
# What a job leaves for the one that resumes it: its scans, the results of shards, and the statistics of the first ones.
# Names of files that no reader and no glob takes for a shard begin with a dot.
SCANS_FILE = ".pack-scans"
STATISTICS_FILE = ".pack-statistics"
# Held by the task of an array that looks into the sources for all of them.
SCAN_LOCK_FILE = ".pack-scans.lock"
_SCAN_TIMEOUT_S = 3600.0
_OURS = re.compile(r"(shard-(?:r\d+-)?)\d{6,}\.(?:tar|index)")
_KEPT = re.compile(r"\.shard-(?:r\d+-)?\d{6,}\.(?:result|statistics)|\.pack-(?:scans(?:\.lock)?|statistics)")
# As `temporary_name` makes them.
_WRITTEN = f"{_OURS.pattern}|{_KEPT.pattern}|{TABLES_NAME.pattern}|{re.escape(FILE_NAME)}|{re.escape(JOB_FILE)}"
_TEMPORARY = re.compile(rf"\.(?:{_WRITTEN})(?:\.\d+)?\.tmp")


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
    store: Store = field(init=False)
    prefix: str = field(init=False, default="shard-")
    _held: contextlib.ExitStack = field(init=False)
    _names: set[str] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self.store = Store(self.url, self.storage_options)

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
        return self._local is None

    @property
    def _local(self) -> Path | None:
        return local_path(self.url)

    @property
    def was_complete(self) -> bool:
        """Whether there was a dataset, and no unfinished job, when the job began.

        A job that died after its manifest was in place has nothing left to do but to clean up.
        """
        if FILE_NAME not in self._names or JOB_FILE not in self._names:
            return FILE_NAME in self._names
        job = self._note()
        return job is not None and job.prefix in self._published_prefixes()

    def __enter__(self) -> "Workspace":
        with contextlib.ExitStack() as held:
            if self._local is not None:
                absolute(self._local)  # where that cannot be told, nothing can be made
                self._make_folder(self._local, held)
                self._take_lock(self._local / LOCK_FILE, held)
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
        job = self._note()
        if self.options.num_tasks is not None:
            self._join(job, identity)
            return True
        self._remove(_TEMPORARY)
        if job is not None and (self.options.resume or self.options.publish):
            job.refuse_other(identity, None, self.url)
            self.prefix = job.prefix
            return True
        if self.options.publish:
            raise PackError(
                f"{self.url}: no task of a packing job was there, wanted shards to publish. Run the tasks first: "
                "--task-index 0 and so on, with --num-tasks."
            )
        if job is not None and job.prefix not in self._published_prefixes():
            # An interrupted job may have got as far as its manifest: then its shards are the dataset.
            self._remove_shards(job.prefix)
        self._remove(_KEPT)
        self._names = set(list_names(self.url, self.storage_options) or ())
        self._choose_prefix()
        write_note(self.store, JobNote(dict(identity), self.prefix))
        return False

    def _join(self, job: JobNote | None, identity: Mapping[str, str]) -> None:
        """Be one of the tasks of an array: the first one leaves a note, and all others find it."""
        if job is None:
            self._choose_prefix()
            job = write_note(self.store, JobNote(dict(identity), self.prefix, self.options.num_tasks))
        job.refuse_other(identity, self.options.num_tasks, self.url)
        self.prefix = job.prefix

    @contextlib.contextmanager
    def scanning(self) -> Iterator[bool]:
        """While the sources are looked into, which the first task of an array does for all; whether it may be done.

        Raises:
            DeadlineError: If another task has not done it in an hour.
        """
        is_array = self.options.num_tasks is not None
        if not is_array or self._local is None or FILE_NAME in self._names:
            yield self.has_job and (self.options.resume or self.options.publish or is_array)
            return
        try:
            with locked(self._local / SCAN_LOCK_FILE, _SCAN_TIMEOUT_S):
                yield True
        except TimeoutError as error:
            raise DeadlineError(
                f"{self.url}: another task of this job has looked into the sources for {_SCAN_TIMEOUT_S:.0f} s, wanted "
                "what it finds. Check the file system that holds them."
            ) from error

    def shard_name(self, number: int) -> str:
        """File name of a shard of this job."""
        return f"{self.prefix}{number:06d}.tar"

    def abandon(self, *, keep_complete: bool) -> None:
        """Take everything of this job away again; with `keep_complete` only what is not complete.

        An error can come after the manifest is in place: then the shards are a dataset's, and nothing is removed. What
        tasks of an array leave is theirs together.
        """
        if self.options.num_tasks is not None:
            return
        self._remove(_TEMPORARY)
        if self.prefix in self._published_prefixes() or keep_complete:
            return
        self._remove(_KEPT)
        self._remove_shards(self.prefix)
        for name in list_names(self.url, self.storage_options) or ():
            if TABLES_NAME.fullmatch(name) and name not in self._names:
                remove_quietly(join(self.url, name), self.storage_options)
        remove_quietly(join(self.url, JOB_FILE), self.storage_options)

    @property
    def has_job(self) -> bool:
        """Whether an earlier job left something to take up or to clean up."""
        return JOB_FILE in self._names

    def conclude(self, shard_names: Iterable[str]) -> None:
        """After the manifest is published: remove what an older dataset or an interrupted job left."""
        current = {name for shard in shard_names for name in (shard, index_name(shard))}
        for name in sorted(self._names - current):
            if _OURS.fullmatch(name):
                remove_quietly(join(self.url, name), self.storage_options)
        # Of attempts that were killed on other machines: no task runs any more.
        self._remove(_TEMPORARY)
        self._remove(_KEPT)
        # Last: as long as it is there, whoever resumes comes back here.
        remove_quietly(join(self.url, JOB_FILE), self.storage_options)

    def _make_folder(self, folder: Path, held: contextlib.ExitStack) -> None:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PackError(f"{folder}: cannot be made ({error.strerror}), wanted a folder. Choose another.") from error
        held.callback(_remove_empty, missing)

    def _take_lock(self, path: Path, held: contextlib.ExitStack) -> None:
        is_shared = self.options.num_tasks is not None
        try:
            held.enter_context(shared_lock(path) if is_shared else locked(path, 0.0))
        except TimeoutError as error:
            raise PackError(
                f"{self.url}: another packing job writes there, wanted it alone. Wait for it to end."
            ) from error
        except OSError as error:
            raise PackError(f"{path}: cannot be written ({error.strerror}). Check room and permissions.") from error
        if not is_shared:
            # Removed while the lock is held: who opened it meanwhile notices that it is nobody's any more.
            held.callback(path.unlink, missing_ok=True)

    @property
    def _goes_on(self) -> bool:
        """Whether what is there is meant."""
        options = self.options
        return options.overwrite or options.resume or options.publish or options.num_tasks is not None

    def _refuse_what_is_there(self) -> None:
        """What is in the folder already must be meant: a dataset, an unfinished job, or tars of somebody else."""
        has_dataset = is_there(join(self.url, FILE_NAME), self.storage_options)
        if has_dataset:
            self._names.add(FILE_NAME)
            if not self._goes_on:
                raise DatasetExistsError(
                    f"{self.url}: holds a dataset already. Choose another folder, or replace it with --overwrite."
                )
            return
        shards = sorted(name for name in self._names if _OURS.fullmatch(name))
        if JOB_FILE in self._names:
            if not self._goes_on:
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

    def _remove(self, pattern: re.Pattern[str]) -> None:
        for name in list_names(self.url, self.storage_options) or ():
            if pattern.fullmatch(name):
                remove_quietly(join(self.url, name), self.storage_options)

    def _note(self) -> JobNote | None:
        job = read_note(self.store)
        return job if job is not None and _OURS.fullmatch(f"{job.prefix}000000.tar") else None


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
