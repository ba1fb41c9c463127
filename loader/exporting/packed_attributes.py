"""What packed episodes say of themselves beside the index of their shard: members of its tar, on this machine."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from epistream.errors import SourceError
from epistream.lazy import lazy
from epistream.sharding.tar.tar_reader import Member, read_member, walk

_META = ".meta.json"
_MOST_BYTES = 1 << 20


@dataclass(frozen=True, eq=False)
class PackedAttributes:
    """The attributes of the episodes of a tar.

    Args:
        path: Of the tar.
        keys: Of its episodes, by their number in it.
    """

    path: Path
    keys: Sequence[str]

    def of(self, number: int) -> Mapping[str, Any]:
        """Of an episode; nothing where it has none, or says them in no way that can be read.

        Raises:
            SourceError: If the tar cannot be read.
            FormatError: If it is torn.
        """
        member = self._members.get(f"{self.keys[number]}{_META}")
        if member is None or member.size > _MOST_BYTES:
            return {}
        with self._open() as file:
            try:
                said = json.loads(read_member(file, member))
            except (ValueError, RecursionError):
                return {}
        attributes = said.get("attributes") if isinstance(said, dict) else None
        return attributes if isinstance(attributes, dict) else {}

    @lazy
    def _members(self) -> dict[str, Member]:
        with self._open() as file:
            return {one.name: one for one in walk(file, str(self.path)) if one.name.endswith(_META)}

    def _open(self) -> Any:
        try:
            return self.path.open("rb")
        except OSError as error:
            raise SourceError(f"{self.path}: {error.strerror}, wanted to read it. Check the path.") from error
