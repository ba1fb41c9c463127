"""What a folder holds instead of a dataset, and what to do about it: the second half of an error message."""

import shlex
from collections import Counter

from epistream.file_systems import local_path
from epistream.plain_files import not_a_plain_file
from epistream.sharding.files.foreign import foreign_file, foreign_folder
from epistream.sharding.files.names import HDF5_SUFFIXES, is_compressed_tar
from epistream.sharding.files.storage import Options, list_names

COMPRESSED = "Compressed tars cannot be read at random: decompress"
_OTHERS = "other files or folders"
_UNFINISHED = "files of an unfinished packing job"


def describe_folder(url: str, options: Options = None) -> str:
    """One or two sentences, ending in a next step that works."""
    names = list_names(url, options)
    if names is None:
        return _describe_what_is_no_folder(url)
    if not names:
        return "The folder is empty. Pack episodes into it with 'epistream pack SRC... OUT'."
    kinds = Counter(_kind(name) for name in names)
    foreign = foreign_folder(url, options) if set(kinds) <= {_OTHERS} else None
    if foreign:
        return f"Found {foreign.what}. {foreign.advice}"
    found = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items(), key=lambda item: item[0] == _OTHERS))
    others = [name[:40] for name in names if _kind(name) == _OTHERS]
    if others:
        found += f" ({', '.join(others[:3])}{', ...' if len(others) > 3 else ''})"
    return f"Found {found}. {_advice(kinds, url)}"


def _describe_what_is_no_folder(url: str) -> str:
    if is_compressed_tar(url):
        return f"{COMPRESSED} it first."
    path = local_path(url)
    problem = "no such file" if path is None else not_a_plain_file(path)
    if path is not None and problem is None:
        foreign = foreign_file(path)
        if foreign:
            return f"Found {foreign.what}, wanted a dataset's folder or HDF5 files. {foreign.advice}"
        return f"Found a file where a folder was wanted. {_advice_for_file(path.name, url)}"
    if problem == "no such file":
        return "The folder does not exist or cannot be listed. Check the path."
    return f"Found {problem}, wanted a dataset's folder. Check the path."


def _kind(name: str) -> str:
    if name.endswith(HDF5_SUFFIXES):
        return "HDF5 files"
    if name.endswith(".tar"):
        return "tars"
    if is_compressed_tar(name):
        return "compressed tars"
    is_download = name.endswith(tuple(f"{suffix}.part" for suffix in HDF5_SUFFIXES))
    if not is_download and (
        name.endswith((".tmp", ".part"))
        or name.startswith((".shard-", ".pack"))
        or (name.startswith(".") and "tmp" in name)
    ):
        return _UNFINISHED
    if name.endswith(".index"):
        return "shard indexes"
    return _OTHERS


def _advice(kinds: Counter[str], url: str) -> str:
    if kinds["HDF5 files"]:
        return f"Pack them first: epistream pack {shlex.quote(url)} OUT"
    if kinds["shard indexes"] or kinds[_UNFINISHED]:
        return "A packing run did not finish: run it again with --resume, or index what is there: " + (
            f"epistream index {shlex.quote(url)}"
        )
    if kinds["tars"]:
        return f"Index them first: epistream index {shlex.quote(url)}"
    if kinds["compressed tars"]:
        return f"{COMPRESSED} them first."
    return "Check the path: a dataset is the folder that 'epistream pack' wrote."


def _advice_for_file(name: str, url: str) -> str:
    if name.endswith(HDF5_SUFFIXES):
        return f"Pack it first: epistream pack {shlex.quote(url)} OUT"
    return "Give the dataset's folder, or tars by a brace pattern or glob."
