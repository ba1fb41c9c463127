"""Groups of a dataset's shards: those that lie in one folder, and call their features alike."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from epistream.access import chain_of
from epistream.errors import FormatError
from epistream.file_systems import local_path, protocol_of
from epistream.sharding.files.storage import join
from epistream.sharding.format.features import Feature, can_be_name

# A folder in the dataset's own: what a hostile manifest must not be able to do is leave that unseen.
_INNER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-+=,]{0,119}")
# Those that edits make: of episodes that are added, and of shards that are copied.
ADDED = re.compile(r"added-[0-9a-f]{12}")
MADE_BY_EDITS = re.compile(rf"{ADDED.pattern}|part-\d{{3}}-\d{{3}}")
_MOST_GROUPS = 4096


@dataclass(frozen=True)
class ShardGroup:
    """Some shards of a dataset.

    Args:
        url: Their folder. Empty is the dataset's own, a name is a folder in that; else an absolute path or a URL.
        renamed: Name of a feature in the dataset -> its name in the shards, of those that differ.
        dropped: Features of the shards, by their names there, that the dataset leaves out.
    """

    url: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

    @property
    def is_inside(self) -> bool:
        """Whether its shards lie in the dataset's folder, or in a folder of that."""
        return not self.url or _INNER.fullmatch(self.url) is not None

    def folder(self, url: str) -> str:
        """The folder of its shards, of a dataset at `url`."""
        return url if not self.url else join(url, self.url) if self.is_inside else self.url

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {"url": self.url, "renamed": dict(self.renamed), "dropped": list(self.dropped)}


ONE_GROUP = (ShardGroup(),)


def groups_from(value: object, url: str, where: str) -> tuple[ShardGroup, ...]:
    """The inverse of `ShardGroup.to_dict`, of a list from a file.

    Args:
        value: The list.
        url: Of the dataset.
        where: What messages begin with.

    Raises:
        FormatError: If it is no such list, or names a folder that a dataset at `url` may not name.
    """
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_GROUPS:
        raise FormatError(f"{where}: groups {value!r:.80}, wanted a list of 1 to {_MOST_GROUPS:,}.")
    groups = []
    for one in value:
        renamed, dropped = (one.get("renamed"), one.get("dropped")) if isinstance(one, dict) else (None, None)
        if (
            not isinstance(one, dict)
            or not isinstance(one.get("url"), str)
            or not isinstance(renamed, dict)
            or not isinstance(dropped, list)
            or not all(isinstance(name, str) for name in (*renamed, *renamed.values(), *dropped))
        ):
            raise FormatError(f"{where}: group {one!r:.120}, wanted a map with url, renamed and dropped.")
        group = ShardGroup(one["url"], renamed, tuple(dropped))
        if not group.is_inside:
            _refuse_strange_folder(group.url, url, where)
        groups.append(group)
    return tuple(groups)


def group_problems(groups: Sequence[ShardGroup], features: Mapping[str, Feature]) -> Iterator[str]:
    """What cannot be in the groups of a dataset with these features."""
    for group in groups:
        times_stored = Counter(group.renamed.get(name, name) for name in features)
        twice = next((name for name, times in times_stored.items() if times > 1), None)
        if twice is not None or len(set(group.renamed.values())) != len(group.renamed):
            yield f"group {group.url!r:.80}: two features of one name in the shards, {dict(group.renamed)!r:.200}"
        for name, stored in group.renamed.items():
            if name not in features or not can_be_name(stored):
                yield f"group {group.url!r:.80}: {name!r:.80} renamed from {stored!r:.80}, wanted a feature"


def _refuse_strange_folder(folder: str, url: str, where: str) -> None:
    """A manifest on this machine may name any folder; one that was fetched only such as it was fetched from itself.

    Else whoever gives a dataset away could have the files and the credentials of others used.
    """
    is_local = local_path(folder) is not None
    if is_local and not folder.startswith("/"):
        raise FormatError(f"{where}: shards in {folder!r:.120}, wanted a folder of its own, a whole path or a URL.")
    if local_path(url) is not None:
        return
    ours, theirs = chain_of(folder), chain_of(url)
    # Of a chained URL every link must be alike: simplecache::file:///etc is no simplecache::s3://bucket/x.
    if is_local or list(map(protocol_of, ours)) != list(map(protocol_of, theirs)):
        raise FormatError(
            f"{where}: shards in {folder!r:.120}, wanted {protocol_of(url)} URLs as its own. Merge there with "
            "'epistream edit merge --copy', or give it shards of its own where it was made "
            "('epistream edit compact') and copy that."
        )
    if any(
        protocol_of(there) in ("http", "https") and _server_of(here) != _server_of(there)
        for here, there in zip(ours, theirs, strict=True)
    ):
        raise FormatError(f"{where}: shards in {folder!r:.120}, wanted the server of the dataset.")


def _server_of(url: str) -> str | None:
    """The server of a URL; None where programs may read it differently: a backslash, or what is no address."""
    try:
        return None if "\\" in url else urlsplit(url).netloc
    except ValueError:
        return None
