"""The files below ``meta/`` of a LeRobot data set: which there are, their versions, their bytes; in few requests."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from epistream.bodies import is_http, persist, retries_of
from epistream.errors import EpistreamError, SourceError
from epistream.file_systems import advice_on, ask, is_same_version, local_path, open_file_system, protocol_of
from epistream.sharding.files.storage import Options, join, read_bytes
from epistream.sharding.files.versioned_files import read_versioned, told_version, version_and_told_bytes
from epistream.sharding.lerobot_meta.info import INFO, LeRobotInfo

S = TypeVar("S")
T = TypeVar("T")

EPISODES_V2, TASKS_V2 = "meta/episodes.jsonl", "meta/tasks.jsonl"
TASKS_V3 = "meta/tasks.parquet"
# What the plan follows from. Statistics are read when somebody looks at them.
_OF_PLAN = re.compile(rf"{INFO}|{EPISODES_V2}|{TASKS_V2}|{TASKS_V3}|meta/episodes/[^/]+/[^/]+\.parquet")
_EPISODES_V3 = re.compile(r"meta/episodes/[^/]+/[^/]+\.parquet")
_AT_ONCE = 16  # requests
_LOCAL_AT_ONCE = 4  # more of them would only wait for each other's memory


@dataclass(frozen=True)
class MetaFiles:
    """What is known of the files of one data set before any is read.

    Args:
        root: The data set's folder or URL.
        options: For fsspec.
        versions: Of the files that the plan follows from, by relative path. Of a web server, which lists nothing,
            ``info.json`` alone, whose bytes come with it.
        sizes: Of the same files, in bytes, where they are told.
        is_listed: Whether these are all that there are.
        tells: Whether the bytes of a file come with its version, as those of web servers do.
        told: By relative path, versions that came so.
        held: By relative path, bytes that were brought before they are asked for; None of what is not there.
    """

    root: str
    options: Options
    versions: Mapping[str, str]
    sizes: Mapping[str, int]
    is_listed: bool
    tells: bool = False
    told: dict[str, str] = field(default_factory=dict)
    held: dict[str, bytes | None] = field(default_factory=dict)

    def url(self, name: str) -> str:
        """Where a file is."""
        return join(self.root, name)

    def read(self, name: str) -> bytes | None:
        """The bytes of a file; None if there is none.

        Raises:
            SourceError: If it cannot be read.
        """
        if self.is_listed and name not in self.versions and _OF_PLAN.fullmatch(name):
            return None
        if name in self.held:
            return self.held.pop(name)
        if not self.tells:
            return read_bytes(self.url(name), self.options, size=self.sizes.get(name))
        found = read_versioned(self.url(name), self.options)
        if found is None:
            return None
        data, self.told[name] = found
        return data

    def hold(self, names: Sequence[str]) -> None:
        """Bring some files at the same time, for who reads them next; nothing where versions do not come with bytes."""
        if self.tells:
            found = at_once(self.read, names)
            self.held.update(zip(names, found, strict=True))

    def episode_files(self) -> list[str]:
        """The listed Parquet files of episodes, in the order in which LeRobot reads them."""
        return sorted(name for name in self.versions if _EPISODES_V3.fullmatch(name))

    def are_still(self, versions: Mapping[str, str]) -> bool:
        """Whether the files of the plan are those of another time, no more and no fewer.

        Raises:
            SourceError: If one cannot be asked for its version.
        """
        if self.is_listed:
            return dict(self.versions) == dict(versions)
        others = [name for name in versions if name not in self.versions]
        return all(is_same_version(versions.get(name), version) for name, version in self.versions.items()) and all(
            is_same_version(version, versions[name])
            for name, version in zip(others, self.versions_of(others), strict=True)
        )

    def versions_of(self, names: Sequence[str]) -> list[str | None]:
        """The versions of some files as they are now, asked for together; None of what is not there."""
        return at_once(lambda name: version_now(self.url(name), self.options)[0], names)


def at_once(do: Callable[[S], T], things: Sequence[S], *, is_local: bool = False) -> list[T]:
    """What `do` gives for each of some things, several at a time; the first error of any."""
    if len(things) < 2:
        return [do(one) for one in things]
    most = _LOCAL_AT_ONCE if is_local else _AT_ONCE
    with ThreadPoolExecutor(min(len(things), most), "epistream-lerobot") as pool:
        return list(pool.map(do, things))


def look_on_web(root: str, options: Options) -> MetaFiles | None:
    """As `look_at`, of a web server; without any version where there is no ``meta/info.json``; None of others.

    Raises:
        SourceError: If it cannot be read.
    """
    if not is_http(open_file_system(root, options)[0]):
        return None
    found = read_versioned(join(root, INFO), options)
    if found is None:
        return MetaFiles(root, options, {}, {}, is_listed=False, tells=True)
    data, version = found
    return MetaFiles(root, options, {INFO: version}, {}, is_listed=False, tells=True, held={INFO: data})


def are_now(root: str, options: Options, versions: Mapping[str, str]) -> bool:
    """Whether files of the plan still have these versions, and there are no others where that can be known.

    Raises:
        SourceError: If one cannot be asked for its version.
    """
    if local_path(root) is not None or not is_http(open_file_system(root, options)[0]):
        return look_at(root, options).are_still(versions)
    found = at_once(lambda name: version_now(join(root, name), options)[0], list(versions))
    return all(map(is_same_version, found, versions.values()))


def look_at(root: str, options: Options) -> MetaFiles:
    """Which files of the plan there are, and their versions.

    Local folders are walked, remote ones listed with one request, and of web servers ``info.json`` is read.

    Raises:
        SourceError: If there is no ``meta/info.json``, or the folder cannot be looked at.
    """
    path = local_path(root)
    files = look_on_web(root, options) if path is None else None
    if files is None:
        found = _local(path) if path is not None else _remote(root, options)
        versions = {name: version for name, (version, _) in found.items()}
        sizes = {name: size for name, (_, size) in found.items() if size is not None}
        files = MetaFiles(root, options, versions, sizes, is_listed=True)
    if INFO not in files.versions:
        raise SourceError(
            f"{join(root, INFO)}: no such file, wanted it in the folder of a LeRobot data set. Check the path."
        )
    return files


def version_now(url: str, options: Options) -> tuple[str | None, int | None]:
    """The version of one file and its size, if it is told; None, None if it is not there.

    Raises:
        SourceError: If it cannot be asked for.
    """
    try:
        return version_and_told_bytes(url, options)
    except FileNotFoundError:
        return None, None
    except EpistreamError:
        raise
    except Exception as error:  # each file system of fsspec has errors of its own
        raise _unreadable(url, error, options) from error


def _local(root: Path) -> dict[str, tuple[str, int | None]]:
    names: list[str] = [INFO, EPISODES_V2, TASKS_V2, TASKS_V3]
    try:
        names += [
            file.relative_to(root).as_posix()
            for chunk in (root / "meta" / "episodes").iterdir()
            if chunk.is_dir()
            for file in chunk.iterdir()
            if _EPISODES_V3.fullmatch(file.relative_to(root).as_posix())
        ]
    except FileNotFoundError:
        pass  # of v2, or it is said later what is missing
    except OSError as error:
        raise SourceError(f"{root / 'meta' / 'episodes'}: {error.strerror}. Check access.") from error
    found: dict[str, tuple[str, int | None]] = {}
    for name in names:
        version, size = version_now(str(root / name), None)
        if version is not None:
            found[name] = version, size
    return found


def _remote(root: str, options: Options) -> dict[str, tuple[str, int | None]]:
    url = join(root, INFO)
    try:
        file_system, target = open_file_system(join(root, "meta"), options)
        if protocol_of(root) != "hf":  # there revisions are commits by now, and what was listed of these stays
            file_system.invalidate_cache()
        listed = persist(
            retries_of(options), lambda limit_s: ask(file_system, "find", target, detail=True, limit_s=limit_s)
        )
    except FileNotFoundError:
        return {}
    except EpistreamError:
        raise
    except Exception as error:  # each file system of fsspec has errors of its own
        raise _unreadable(url, error, options) from error
    return _of_plan((f"meta/{name.rpartition('/meta/')[2]}", info) for name, info in listed.items())


def _of_plan(listed: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, tuple[str, int | None]]:
    return {name: told_version(info) for name, info in listed if _OF_PLAN.fullmatch(name)}


def _unreadable(url: str, error: Exception, options: Options) -> SourceError:
    advice = advice_on(error, url, options, "Check access and storage_options.")
    return SourceError(f"{url}: {type(error).__name__}: {error}, wanted to look at it. {advice}")


def numbered(info: LeRobotInfo, start: int, count: int) -> list[str]:
    """Parquet files of episodes as v3 numbers them, from the one at `start` on, counted over all chunks."""
    return [
        f"meta/episodes/chunk-{number // info.chunks_size:03d}/file-{number % info.chunks_size:03d}.parquet"
        for number in range(start, start + count)
    ]
