"""Files that list episodes: JSON as commands write it, or plain text with a number, key or source a line."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import xxhash

from epistream.errors import FormatError, SourceError, VersionError
from epistream.file_systems import local_path
from epistream.hints import in_short
from epistream.sharding.files.storage import read_bytes, write_atomic
from epistream.shown_urls import shown
from epistream.working_folder import absolute

FORMAT = "epistream-selection"
VERSION = 1
_MOST_BYTES = 256 << 20
_TEXTS = ("source", "path", "key")


@dataclass(frozen=True)
class ListedEpisode:
    """An episode as a file lists it; what is not known is empty.

    Args:
        index: Its position in the dataset that the file was made of.
        source: The file that it came from.
        path: Where in that file.
        key: What its shard calls it.
        codes: Why it is listed, for example the codes of findings.
        keep: The steps [start, stop) that should stay of it, where the file says so.
    """

    index: int | None = None
    source: str = ""
    path: str = ""
    key: str = ""
    codes: tuple[str, ...] = ()
    keep: tuple[int, int] | None = None

    def __str__(self) -> str:
        texts = [f"{self.source}: {self.path}" if self.path else self.source, self.key]
        told = next((text for text in texts if text), "")
        return told or f"episode {self.index}"


@dataclass(frozen=True, eq=False)
class ListedEpisodes:
    """What a file lists.

    Args:
        file: Its name, for messages.
        of: The dataset that it was made of; empty if it does not say so.
        episodes: In its order.
        lines: Of plain text, what is not a number: each a key, or a source.
        digest: XXH3-64 of its bytes, hexadecimal.
    """

    file: str
    of: str
    episodes: Sequence[ListedEpisode]
    lines: Sequence[str] = ()
    digest: str = ""


def write_selection(path: str | os.PathLike[str], episodes: Sequence[ListedEpisode], of: str) -> None:
    """Write a selection file, whole or not at all.

    Args:
        path: Where; a folder that is there, or a URL.
        episodes: In any order.
        of: URL of the dataset whose episodes they are.

    Raises:
        SourceError: If it cannot be written.
    """
    said = [
        {"index": one.index, **{name: getattr(one, name) for name in _TEXTS}, "codes": list(one.codes)}
        | ({} if one.keep is None else {"keep": list(one.keep)})
        for one in episodes
    ]
    lines = ",\n  ".join(json.dumps(one, ensure_ascii=False) for one in said)
    inner = f"[\n  {lines}\n ]" if said else "[]"
    head = f'{{"format": "{FORMAT}", "version": {VERSION}, "of": {json.dumps(shown(of), ensure_ascii=False)}'
    write_atomic(_place_of(path), f'{head},\n "episodes": {inner}}}\n'.encode("utf-8", "surrogatepass"))


def read_selection(path: str | os.PathLike[str]) -> ListedEpisodes:
    """What a selection file lists.

    Raises:
        SourceError: If it is missing, or cannot be read.
        VersionError: If it is of a later version.
        FormatError: If it is neither such JSON nor text.
    """
    url = _place_of(path)
    data = read_bytes(url, most=_MOST_BYTES)
    if data is None:
        raise SourceError(f"{url}: no such file, wanted a list of episodes. Check the path.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{url}: no text in UTF-8 ({error}), wanted a selection file, or a number, key or source a line."
        ) from None
    digest = xxhash.xxh3_64_hexdigest(data)
    if text.lstrip()[:1] in ("{", "["):
        return _of_json(text, url, digest)
    return _of_lines(text, url, digest)


def _place_of(path: str | os.PathLike[str]) -> str:
    name = os.fspath(path)
    local = local_path(os.path.expanduser(name))  # noqa: PTH111, an unknown ~name is a name
    return name if local is None else str(absolute(local))


def _of_lines(text: str, where: str, digest: str) -> ListedEpisodes:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    if "\0" in text:
        raise FormatError(f"{where}: zero bytes, wanted text with a number, key or source a line. Check the path.")
    numbers = [int(line) for line in lines if line.isascii() and line.isdigit() and len(line) < 16]
    others = [line for line in lines if not (line.isascii() and line.isdigit() and len(line) < 16)]
    return ListedEpisodes(where, "", [ListedEpisode(number) for number in numbers], others, digest)


def _of_json(text: str, where: str, digest: str) -> ListedEpisodes:
    try:
        said = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{where}: no readable JSON ({str(error)[:120]}), wanted a selection file. Write it again."
        ) from None
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        found = in_short(said.get("format")) if isinstance(said, dict) else f"a {type(said).__name__}"
        raise FormatError(
            f"{where}: format {found}, wanted {FORMAT!r}; or plain text with a number, key or source a line."
        )
    if said.get("version") != VERSION:
        raise VersionError(
            f"{where}: version {in_short(said.get('version'))}, this release reads version {VERSION}. Write it again "
            "with this release, or install a later one."
        )
    of, episodes = said.get("of", ""), said.get("episodes")
    if not isinstance(of, str) or not isinstance(episodes, list):
        raise FormatError(f"{where}: wanted 'of', a text, and 'episodes', a list. Write it again.")
    return ListedEpisodes(where, of, [_episode(one, number, where) for number, one in enumerate(episodes)], (), digest)


def _episode(said: Any, number: int, where: str) -> ListedEpisode:
    if isinstance(said, Mapping):
        index, codes = said.get("index"), said.get("codes", [])
        texts = {name: said.get(name) or "" for name in _TEXTS}
        is_position = index is None or (type(index) is int and 0 <= index < 1 << 48)
        is_named = any(texts.values()) or index is not None
        are_texts = isinstance(codes, list) and all(isinstance(one, str) for one in texts.values())
        if is_position and is_named and are_texts and _is_range(said.get("keep")):
            keep = None if said.get("keep") is None else (said["keep"][0], said["keep"][1])
            return ListedEpisode(index, **texts, codes=tuple(map(str, codes)), keep=keep)
    raise FormatError(
        f"{where}: episodes[{number}] is {in_short(said)}, wanted a map with index (from 0), source, path, key, "
        "codes and keep ([start, stop]). Correct it, or write the file again."
    )


def _is_range(keep: Any) -> bool:
    if keep is None:
        return True
    is_pair = isinstance(keep, list) and len(keep) == 2 and all(type(step) is int for step in keep)
    return is_pair and 0 <= keep[0] < keep[1] < 1 << 48
