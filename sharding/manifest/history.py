"""What was done to a dataset since it was packed: a line for each edit, beside the manifest."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import overload

from epistream.errors import FormatError
from epistream.lazy import lazy
from epistream.sharding.format.episode_meta import parse_json
from epistream.sharding.format.tables import parse_tables, write_tables
from epistream.sharding.format.texts import Texts

KIND = "epistream.dataset-history"
_FINGERPRINT = re.compile("[0-9a-f]{32}")
REMEDY = "Nothing that is streamed needs it; 'epistream edit' does. Copy it again."


@dataclass(frozen=True)
class Edit:
    """One edit, or the packing before the first.

    Args:
        fingerprint: Of the dataset behind it.
        when: UTC, ISO 8601; empty if not known.
        what: What was done, in a few words.
        command: That did it, as a shell would take it; or the function's name.
        writer: Program and version.
        before: Position in the history of the dataset that an undo goes back to; -1 where there is none.
    """

    fingerprint: str
    when: str = ""
    what: str = ""
    command: str = ""
    writer: str = ""
    before: int = -1


class History(Sequence[Edit]):
    """Edits, the oldest first; reads nothing before somebody looks.

    Args:
        load: Reads the lines.
        count: How many there are.
    """

    def __init__(self, load: Callable[[], Sequence[str]], count: int) -> None:
        self._load, self._count = load, count

    @classmethod
    def of(cls, edits: Sequence[Edit]) -> "History":
        """Those that there are already."""
        lines = [json.dumps(asdict(edit), ensure_ascii=False) for edit in edits]
        return cls(lambda: lines, len(lines))

    @lazy
    def lines(self) -> Sequence[str]:
        """Each as JSON.

        Raises:
            FormatError: If its file is missing or damaged.
        """
        return self._load()

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Edit: ...
    @overload
    def __getitem__(self, index: slice) -> list[Edit]: ...
    def __getitem__(self, index: int | slice) -> Edit | list[Edit]:
        if isinstance(index, slice):
            return [_parsed(line) for line in self.lines[index]]
        return _parsed(self.lines[index])

    def to_bytes(self) -> bytes:
        """The file; the same lines give the same bytes."""
        data, offsets = Texts.of(self.lines, "history").arrays
        return write_tables(KIND, {"num_edits": len(self)}, {"lines": data, "offsets": offsets})


NO_HISTORY = History(tuple, 0)


def parse_lines(data: bytes, count: int, where: str) -> Texts:
    """The lines of `History.to_bytes`.

    Raises:
        VersionError: If the container is of a later version.
        FormatError: If it holds anything else.
    """
    arrays = parse_tables(data, KIND, where, REMEDY, verify_body=False).arrays
    if {name: str(array.dtype) for name, array in arrays.items()} != {"lines": "uint8", "offsets": "int64"}:
        raise FormatError(f"{where}: tables {sorted(arrays)!r:.120}, wanted lines and offsets. {REMEDY}")
    lines = Texts(arrays["lines"], arrays["offsets"], where, REMEDY)
    if len(lines) != count:
        raise FormatError(f"{where}: {len(lines):,} edits, wanted {count:,}. {REMEDY}")
    return lines


def _parsed(line: str) -> Edit:
    value = parse_json(line.encode(), "history")
    known = (
        {name: value[name] for name in Edit.__dataclass_fields__ if name in value} if isinstance(value, dict) else {}
    )
    kinds = {name: int if name == "before" else str for name in Edit.__dataclass_fields__}
    if not _FINGERPRINT.fullmatch(str(known.get("fingerprint"))) or any(
        type(each) is not kinds[name] for name, each in known.items()
    ):
        raise FormatError(f"history: {line!r:.120}, wanted an edit with its fingerprint. {REMEDY}")
    return Edit(**known)
