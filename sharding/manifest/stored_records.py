"""The records of a dataset's episodes: a file of them for the packing, one more for each time that some were added."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from epistream.errors import FormatError
from epistream.lazy import lazy
from epistream.sharding.format.checksums import checksum
from epistream.sharding.format.ragged import Int64
from epistream.sharding.manifest.episode_records import NO_EPISODES, REMEDY, EpisodeRecords


@dataclass(frozen=True)
class RecordsFile:
    """A file of records, which never changes.

    Args:
        file: Its name.
        num_bytes: Its size.
        checksum: XXH3-128, hexadecimal.
        count: Records in it.
        load: Gives its contents.
        url: Where it is; empty where it is not written yet.
        renamed: Name of a feature in the dataset -> its name in the file, of those that differ.
    """

    file: str
    num_bytes: int
    checksum: str
    count: int
    load: Callable[[], bytes] = field(repr=False)
    url: str = ""
    renamed: Mapping[str, str] = field(default_factory=dict)

    @staticmethod
    def of(records: EpisodeRecords) -> "RecordsFile":
        """The file that there should be of some records."""
        data = records.to_bytes()
        digest = checksum(data)
        return RecordsFile(
            f"episodes-{digest[:16]}.tables", len(data), digest, records.num_records, partial(_given, data)
        )

    def to_dict(self) -> dict[str, Any]:
        """What ``dataset.json`` says of it."""
        about = {"file": self.file, "bytes": self.num_bytes, "checksum": self.checksum, "count": self.count}
        return {**about, "renamed": dict(self.renamed)} if self.renamed else about

    def read(self) -> EpisodeRecords:
        """The records.

        Raises:
            FormatError: If the file is missing, damaged, or holds another number.
            SourceError: If it cannot be read.
        """
        found = EpisodeRecords.parse(self.load(), self.url or self.file)
        if found.num_records != self.count:
            raise FormatError(
                f"{self.url or self.file}: {found.num_records:,} records, wanted {self.count:,}. {REMEDY}"
            )
        return found.renamed(self.renamed)


class Records:
    """Records of the episodes of a dataset, read when somebody looks. Picklable: read again there.

    Which of them is of an episode says `ManifestColumns.record_of`: files hold on to records of episodes that were
    removed or trimmed since.

    Args:
        files: That hold them, in this order.
    """

    def __init__(self, files: Sequence[RecordsFile] = ()) -> None:
        self.files = tuple(files)

    @classmethod
    def of(cls, records: EpisodeRecords) -> "Records":
        """Those that there are already."""
        return cls([RecordsFile.of(records)]) if records.num_records else NO_RECORDS

    @lazy
    def table(self) -> EpisodeRecords:
        """All of them, with the features that all files have.

        Raises:
            FormatError: If a file is missing or damaged.
            SourceError: If one cannot be read.
        """
        return EpisodeRecords.join([one.read() for one in self.files]) if self.files else NO_EPISODES

    def of_episodes(self, record_of: Int64) -> EpisodeRecords | None:
        """One record an episode: of each (E,) the position of its record; None if one has none, which -1 says."""
        if not len(self) or not len(record_of) or int(record_of.min()) < 0:
            return None
        is_all = len(record_of) == len(self) and np.array_equal(record_of, np.arange(len(self)))
        return self.table if is_all else self.table.select(record_of)

    def and_more(self, records: EpisodeRecords) -> "Records":
        """The same with some more behind them, which will be one more file."""
        return Records((*self.files, *Records.of(records).files))

    def renamed(self, old_names: Mapping[str, str]) -> "Records":
        """The same with other names of features; see `EpisodeRecords.renamed`.

        Args:
            old_names: New name -> name so far.
        """
        new_names = {old: new for new, old in old_names.items()}
        files = []
        for one in self.files:
            names = {name: one.renamed.get(old, old) for name, old in old_names.items()}
            names |= {name: was for name, was in one.renamed.items() if name not in {*names, *new_names}}
            files.append(replace(one, renamed={name: was for name, was in names.items() if name != was}))
        return Records(files)

    @staticmethod
    def join(parts: Sequence["Records"]) -> "Records":
        """Those of several datasets, one after the other."""
        return Records([one for part in parts for one in part.files])

    def __len__(self) -> int:
        return sum(one.count for one in self.files)

    def __bool__(self) -> bool:
        return bool(self.files)

    def __repr__(self) -> str:
        return f"Records({len(self):,} in {', '.join(one.file for one in self.files) or 'no file'})"

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files}


NO_RECORDS = Records()


def _given(data: bytes) -> bytes:
    return data
