"""Formats of others: how files and folders of theirs are recognised, and what to do with them. Nothing is ever parsed.

One table for files (by their first bytes, else by the end of their name), one for folders (by the names in them). Every
place that judges a source asks here: packing, streams, inspecting, indexing.
"""

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from epistream.file_systems import local_path
from epistream.plain_files import LFS_POINTER, not_a_plain_file
from epistream.sharding.files.names import HDF5_SUFFIXES, LEROBOT_INFO
from epistream.sharding.files.storage import Options, join, list_names, read_bytes

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# Before it there may be a block of the writer's own: MATLAB's is of 512 bytes.
_SIGNATURE_AT = (0, 512, 1024, 2048, 4096, 8192)
_HEAD_BYTES = 512
_MAX_NAMES = 5_000
_MAX_DEPTH = 6
_MOST_INFO_BYTES = 4 << 20  # of a meta/info.json, which has a few KB
_GUIDE = "docs/hdf5.md, 'Formats of others', has a program for that"


@dataclass(frozen=True)
class Foreign:
    """What a file or folder is, and what to do: both for a message, the advice a sentence or two."""

    what: str
    advice: str


def _write(reader: str) -> str:
    return f"It is not read in place: read it with {reader} and write HDF5 with h5py; {_GUIDE}."


_OF_LEROBOT = "Of a LeRobot data set give the folder, the one with meta/info.json in it."


def _unpack(command: str) -> str:
    return f"Unpack it first: {command}."


_TRANSFER = "Download it again, whole, and look at it when it is small: a message may be in it."
# By the first bytes of a file: where they are, what they are, the name, the advice.
_HEADS: tuple[tuple[int, bytes, str, str], ...] = (
    (0, LFS_POINTER, "a Git LFS pointer, not the file itself", "Run: git lfs pull."),
    (0, b"/annex/objects/", "a git-annex pointer, not the file itself", "Run: git annex get"),
    (0, b"\x1f\x8b", "compressed (gzip)", _unpack("gunzip FILE")),
    (0, b"\x28\xb5\x2f\xfd", "compressed (zstd)", _unpack("zstd -d FILE")),
    (0, b"\xfd7zXZ\x00", "compressed (xz)", _unpack("unxz FILE")),
    (0, b"BZh", "compressed (bzip2)", _unpack("bunzip2 FILE")),
    (0, b"\x04\x22\x4d\x18", "compressed (lz4)", _unpack("lz4 -d FILE")),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _unpack("7z x FILE")),
    (0, b"Rar!", "a rar archive", _unpack("unrar x FILE")),
    (0, b"PAR1", "a Parquet file", f"{_OF_LEROBOT} {_write('pyarrow')}"),
    (0, b"ARROW1", "an Arrow file", _write("pyarrow")),
    (0, b"\x93NUMPY", "a numpy array (.npy)", _write("numpy")),
    (0, b"\x89MCAP0\r\n", "an mcap recording (ROS 2 and others)", _write("mcap or rosbags")),
    (0, b"#ROSBAG V", "a rosbag of ROS 1", _write("rosbags")),
    (0, b"SQLite format 3\x00", "a SQLite database, as rosbag2 has them (.db3)", _write("rosbags")),
    (0, b"MATLAB 5.0 MAT-file", "a MATLAB file before v7.3", "Save it as v7.3, which is HDF5: save('-v7.3', ...)."),
    (0, b"CDF\x01", "a netCDF 3 file", "Convert it to netCDF 4, which is HDF5: nccopy -k nc4 IN OUT."),
    (0, b"CDF\x02", "a netCDF 3 file", "Convert it to netCDF 4, which is HDF5: nccopy -k nc4 IN OUT."),
    (0, b"\x0e\x03\x13\x01", "an HDF4 file", "Convert it to HDF5: h4toh5 IN OUT."),
    (4, b"ftyp", "a video (MP4)", _write("PyAV or OpenCV")),
    (0, b"\x1aE\xdf\xa3", "a video (Matroska)", _write("PyAV or OpenCV")),
    (0, b"RIFF", "a video (AVI)", _write("PyAV or OpenCV")),
    (0, b"\xff\xd8\xff", "a picture (JPEG)", _write("Pillow")),
    (0, b"\x89PNG\r\n", "a picture (PNG)", _write("Pillow")),
)
_LOOKS: tuple[tuple[str, str, str], ...] = (  # of texts and of binaries without a signature, as a pattern
    (r"\s*(?:<!doctype html|<html)", "a web page (HTML), as servers send instead of a file", _TRANSFER),
    (r"\s*<\?xml", "an XML text, as object stores send instead of a file", _TRANSFER),
    (r"(?:\.\./)*\.git/annex/objects/", "a git-annex pointer, not the file itself", "Run: git annex get"),
    (r"(?:wdir:.*\n)?(?:md5:.*\n)?outs:\s", "a DVC pointer, not the file itself", "Run: dvc pull"),
    ("\x80[\x02-\x05][c\x8c\x95]", "a pickle", _write("what wrote it, from a source that you trust,")),
    (r'\s*[{\[]\s*"', "a JSON text", "Give the recording itself."),
)
_SUFFIXES: tuple[tuple[tuple[str, ...], str, str], ...] = (  # by the end of a name
    ((".dvc",), "DVC pointers, not the files themselves", "Run: dvc pull"),
    ((".tfrecord", ".tfrecords"), "RLDS or another dataset of TFRecords", _write("tensorflow_datasets")),
    ((".zarr.zip", ".zarr"), "zarr", _write("zarr")),
    ((".mcap",), "mcap recordings (ROS 2 and others)", _write("mcap or rosbags")),
    ((".bag",), "rosbags of ROS 1", _write("rosbags")),
    ((".db3",), "a rosbag2 recording", _write("rosbags")),
    ((".lance",), "a Lance dataset", _write("pylance")),
    ((".mds",), "MosaicML shards (MDS)", _write("mosaicml-streaming")),
    ((".parquet",), "Parquet tables", f"{_OF_LEROBOT} {_write('pyarrow')}"),
    ((".arrow", ".feather"), "Arrow tables (as Hugging Face datasets are saved)", _write("datasets.load_from_disk")),
    ((".npz", ".npy"), "numpy files", _write("numpy")),
    ((".pkl", ".pickle", ".p"), "pickles", _write("what wrote them, from a source that you trust,")),
    ((".pt", ".pth", ".safetensors"), "torch files", _write("torch")),
    ((".mat",), "MATLAB files", "Save them as v7.3, which is HDF5: save('-v7.3', ...)."),
    ((".svo", ".svo2"), "ZED recordings (SVO)", _write("the ZED SDK (pyzed)")),
    ((".mp4", ".mkv", ".avi", ".mov", ".webm"), "videos", _write("PyAV or OpenCV")),
    ((".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff"), "pictures", _write("Pillow")),
    ((".csv", ".jsonl"), "text tables", _write("pandas")),
)
_COMPRESSED = re.compile(r"\.(?:hdf5|h5|hdf)\.(?:gz|zip|zst|xz|bz2|lz4|7z|rar)$|\.zip$|\.7z$|\.rar$")
_UNFINISHED = re.compile(r"\.(?:part|partial|crdownload|incomplete|aria2|download)$")


def foreign_bytes(head: bytes, name: str = "") -> Foreign | None:
    """What a file is by its first bytes; None if they say nothing. `name` says more of archives.

    Args:
        head: The first bytes, 512 if there are as many.
        name: Of the file.
    """
    for position, signature, what, advice in _HEADS:
        if head[position:].startswith(signature):
            return Foreign(what, advice if advice.endswith(".") else f"{advice}.")
    found: Foreign | None = None
    text = head.decode("latin-1")
    looks = next(((what, advice) for pattern, what, advice in _LOOKS if re.match(pattern, text, re.IGNORECASE)), None)
    if head[:4] == b"PK\x03\x04":
        found = _zip(head, name)
    elif head[257:262] == b"ustar":
        found = Foreign("a tar", "Name it *.tar: a stream reads tars of episodes as they are.")
    elif looks:
        found = Foreign(looks[0], looks[1] if looks[1].endswith(".") else f"{looks[1]}.")
    elif not head:
        found = Foreign("an empty file", "Copy or record it again.")
    elif not head.strip(b"\x00"):
        found = Foreign("a file that begins with zeros, as transfers that were broken off leave", _TRANSFER)
    return found


def stand_in(head: bytes) -> Foreign | None:
    """What is in place of a file of ours, by its first bytes: a pointer to it, or a message of a server."""
    found = foreign_bytes(head)
    is_one = found and ("pointer" in found.what or (found.advice == _TRANSFER and head.strip(b"\x00")))
    return found if is_one else None


def _zip(head: bytes, name: str) -> Foreign:
    """What a zip archive is, by its name and the first names in it."""
    if ".zarr" in name or any(mark in head for mark in (b".zgroup", b".zarray", b"zarr.json")):
        return Foreign("a zarr in a zip", _write("zarr"))
    if name.endswith(".npz") or b".npy" in head:
        return Foreign("a numpy archive (.npz)", _write("numpy"))
    if name.endswith((".pt", ".pth")) or b"data.pkl" in head:
        return Foreign("a torch file", _write("torch"))
    return Foreign("a zip archive", _unpack("unzip FILE"))


def is_hdf5(path: Path) -> bool:
    """Whether a plain file is HDF5, whatever it is called."""
    try:
        with path.open("rb") as file:
            for position in _SIGNATURE_AT:
                file.seek(position)
                if file.read(len(HDF5_SIGNATURE)) == HDF5_SIGNATURE:
                    return True
    except OSError:
        pass
    return False


def foreign_file(path: Path) -> Foreign | None:
    """What a file that is no HDF5, or what is in its place, is; None if nothing is known of it."""
    problem = not_a_plain_file(path)
    if problem:
        if "annex/objects" in problem:
            return Foreign(f"git-annex has not fetched it: {problem}", "Run: git annex get.")
        return Foreign(problem, "Check the path.")
    if is_hdf5(path):
        return None
    with path.open("rb") as file:
        found = foreign_bytes(file.read(_HEAD_BYTES), path.name)
    return found or _by_name(path.name)


def foreign_folder(url: str, options: Options = None) -> Foreign | None:
    """What a folder without HDF5 files of the usual names holds; None if nothing in it is known."""
    path = local_path(url)
    names = list(_names(path)) if path is not None else _remote_names(url, options)
    if path is not None and (found := _hdf5_by_another_name(path, names)):
        return found
    for rule in _FOLDERS:
        found = rule(names, url, options)
        if found:
            return found
    if path is not None:
        return _by_contents(path, names)
    return None


def _by_name(name: str) -> Foreign | None:
    name = name.lower()
    if _UNFINISHED.search(name):
        return Foreign("an unfinished download", "Let it finish, or download it again.")
    if _COMPRESSED.search(name):
        return Foreign("compressed or in an archive", "Unpack it first.")
    for suffixes, what, advice in _SUFFIXES:
        if name.endswith(suffixes) or (".tfrecord" in name and ".tfrecord" in suffixes):
            return Foreign(what, advice if advice.endswith(".") else f"{advice}.")
    return None


def _names(path: Path) -> Iterator[str]:
    """Paths below a folder, the nearest first, as many as a look takes; folders end in a slash."""
    level = [path]
    given = 0
    for _ in range(_MAX_DEPTH):
        below: list[Path] = []
        for folder in level:
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:
                continue
            for entry in entries:
                is_folder = entry.is_dir(follow_symlinks=False)
                below += [Path(entry.path)] * is_folder
                yield Path(entry.path).relative_to(path).as_posix() + "/" * is_folder
                given += 1
                if given >= _MAX_NAMES:
                    return
        level = below


def _remote_names(url: str, options: Options) -> list[str]:
    """The names in a remote folder, and in those below it that tell formats apart."""
    names = list_names(url, options) or []
    inner = [name for name in names if name in ("meta", "data", "_versions")]
    return names + [f"{folder}/{name}" for folder in inner for name in list_names(join(url, folder), options) or ()]


def _lerobot(names: Sequence[str], url: str, options: Options) -> Foreign | None:
    info = next((name for name in names if re.search(rf"(?:^|/){LEROBOT_INFO}$", name)), None)
    if info is None:
        return None
    version = ""
    try:
        said = json.loads(read_bytes(join(url, info), options, _MOST_INFO_BYTES) or b"{}")
        version = str(said.get("codebase_version", ""))[:8] if isinstance(said, dict) else ""
    except (OSError, ValueError, RecursionError):
        pass
    if not version:
        is_v3 = any(re.search(r"(?:^|/)meta/(?:episodes/|tasks\.parquet)", name) for name in names)
        version = "v3" if is_v3 else "v2"
    images = " with its pictures in folders" * any(re.search(r"(?:^|/)images/.+/$", name) for name in names)
    folder = info.removesuffix(LEROBOT_INFO).rstrip("/")
    advice = f"A stream reads such folders where they are: give {join(url, folder) if folder else url}."
    return Foreign(f"a LeRobot dataset ({version}){images}", advice)


def _marked(what: str, advice: str, *patterns: str) -> Callable[[Sequence[str], str, Options], Foreign | None]:
    """A rule: each pattern is found in one of the names."""

    def rule(names: Sequence[str], url: str, options: Options) -> Foreign | None:
        if all(any(re.search(pattern, name) for name in names) for pattern in patterns):
            return Foreign(what, advice)
        return None

    return rule


def _by_suffix(names: Sequence[str], url: str, options: Options) -> Foreign | None:
    """The kind that the table has first, of all files: recordings come before the pictures beside them."""
    files = [name for name in names if name and not name.endswith("/")]
    found = [kind for kind in map(_by_name, files) if kind]
    order = {what: number for number, (_, what, _) in enumerate(_SUFFIXES)}
    return min(found, key=lambda kind: order.get(kind.what, -1)) if found else None


_ZARR = r"(?:^|/)(?:\.zgroup|\.zarray|\.zmetadata|zarr\.json)$"
_FOLDERS: tuple[Callable[[Sequence[str], str, Options], Foreign | None], ...] = (
    _lerobot,
    _marked("an RLDS dataset (TFDS)", _write("tensorflow_datasets"), r"\.tfrecord"),
    _marked("an RLDS dataset (TFDS)", _write("tensorflow_datasets"), r"(?:^|/)features\.json$", r"dataset_info\.json$"),
    _marked("a zarr", _write("zarr"), _ZARR),
    _marked("a rosbag2 recording (mcap)", _write("rosbags"), r"(?:^|/)metadata\.ya?ml$", r"\.mcap$"),
    _marked("a rosbag2 recording", _write("rosbags"), r"(?:^|/)metadata\.ya?ml$", r"\.db3$"),
    _marked("a Lance dataset", _write("pylance"), r"(?:^|/)_versions/", r"(?:^|/)(?:_transactions/|data/.*\.lance$)"),
    _by_suffix,
)


def _hdf5_by_another_name(path: Path, names: Sequence[str]) -> Foreign | None:
    for name in itertools.islice((name for name in names if not name.endswith("/")), 16):
        file = path / name
        if not not_a_plain_file(file) and is_hdf5(file):
            known = " or ".join(HDF5_SUFFIXES)
            pattern = file.parent / f"*{file.suffix}"
            return Foreign(
                f"{name}, which is HDF5 but not called {known}", f"Give such files by a pattern: '{pattern}'."
            )
    return None


def _by_contents(path: Path, names: Sequence[str]) -> Foreign | None:
    """By the first bytes of a few files whose names say nothing."""
    for name in itertools.islice((name for name in names if not name.endswith("/")), 16):
        file = path / name
        if not_a_plain_file(file):
            continue
        found = foreign_file(file)
        if found and not any(word in found.what for word in ("JSON", "empty", "zeros")):
            return Foreign(f"{name}: {found.what}", found.advice)
    return None
