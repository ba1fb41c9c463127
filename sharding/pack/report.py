"""What a packing job tells while it runs, and when it is done."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from epistream.hints import in_short
from epistream.sharding.files.storage import join
from epistream.sharding.format.division import Division
from epistream.sharding.format.features import Feature
from epistream.sharding.format.statistics import NotFinite
from epistream.sharding.manifest.manifest import Manifest
from epistream.sharding.pack.plan import ScannedFile, SetFile, left_out_of
from epistream.sharding.pictures.fidelity import Fidelity
from epistream.shown_urls import shown
from epistream.units import count_text, size_text


@dataclass(frozen=True)
class PackProgress:
    """How far a job is. `stage` is scanning, packing, hashing or publishing; bytes are those of the source."""

    stage: str
    num_done: int
    num_total: int
    bytes_done: int = 0
    bytes_total: int = 0
    num_faults: int = 0


@dataclass(frozen=True)
class PackReport:
    """What a job did.

    Args:
        url: Where the dataset is.
        fingerprint: Of the dataset.
        layouts: Files by layout, of those that gave an episode.
        features: By name.
        splits: Episodes by split.
        num_episodes: Packed.
        num_steps: Of all episodes.
        num_shards: Tars.
        num_resumed: Of these, complete from an interrupted job.
        source_bytes: What the episodes take in the source.
        num_bytes: Of all tars.
        seconds: Wall time.
        faults: What was left out, and why (with ``skip_bad``), a text for each file or episode.
        left_out: Paths in the sources that were not packed.
        outside_files: Files outside of the sources' folders that these read from (with ``allow_outside_files``).
        not_finite: feature -> how many of its values are NaN or infinite, for those that have any.
        fidelity: camera -> what lossy encoding cost it, for those that were encoded as JPEG; empty if not `is_new`.
        notes: What came out otherwise than one may expect of the options.
        is_new: False if the dataset had been complete before, so that nothing was packed (with ``resume``).
        is_published: False of a task of an array, which counts its own shards and has no fingerprint.
    """

    url: str
    fingerprint: str
    layouts: Mapping[str, int]
    features: Mapping[str, Feature]
    splits: Mapping[str, int]
    num_episodes: int
    num_steps: int
    num_shards: int
    num_resumed: int = 0
    source_bytes: int = 0
    num_bytes: int = 0
    seconds: float = 0.0
    faults: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    fidelity: Mapping[str, Fidelity] = field(default_factory=dict)
    outside_files: tuple[str, ...] = ()
    not_finite: Mapping[str, NotFinite] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    is_new: bool = True
    is_published: bool = True

    def __repr__(self) -> str:
        """The most telling, in a line or two."""
        counts = (count_text(self.num_episodes, "episode"), count_text(self.num_steps, "step"))
        told = [*counts, count_text(self.num_shards, "shard"), size_text(self.num_bytes), f"{self.seconds:.1f} s"]
        lists = {"faults": self.faults, "left_out": self.left_out, "notes": self.notes}
        told += [f"{len(found):,} in {name}" for name, found in lists.items() if found]
        return f"PackReport({in_short(shown(self.url))}: {', '.join(told)}; {in_short(list(self.features))})"


def report_of(manifest: Manifest, scans: Sequence[ScannedFile], url: str, division: Division | None) -> PackReport:
    """What a dataset and its sources say of the job that made it.

    Args:
        manifest: Of the dataset.
        scans: Of all sources.
        url: Of the dataset.
        division: As wanted.
    """
    columns = manifest.columns
    split_of = columns.shard_split[columns.episode_shard]
    splits = {name: int((split_of == number).sum()) for number, name in enumerate(manifest.splits)}
    note = None if division is None else division.note(splits)
    # The manifest lists the files with episodes in this order.
    used = set(np.unique(manifest.sources.table.episode_source).tolist())
    packed = [scan for number, scan in enumerate(scan for scan in scans if scan.episodes) if number in used]
    return PackReport(
        url=url,
        fingerprint=manifest.fingerprint,
        layouts=dict(Counter(scan.source.layout for scan in packed)),
        features=manifest.features,
        splits=splits,
        num_episodes=columns.num_episodes,
        num_steps=columns.num_steps,
        num_shards=columns.num_shards,
        source_bytes=sum(episode.source_bytes for scan in packed for episode in scan.episodes),
        num_bytes=int(columns.shard_bytes.sum()),
        # Also of files without an episode: of those a layout file may want none.
        left_out=left_out_of([*packed, *(scan for scan in scans if not scan.episodes)]),
        notes=(note,) if note else (),
    )


Listener = Callable[[PackProgress], None]


def names_of(scans: Iterable[ScannedFile]) -> dict[str, str]:
    """What the dataset calls files, by their paths; of LeRobot data sets also the folders, which end in a slash."""
    names: dict[str, str] = {}
    for source in (scan.source for scan in scans if scan.episodes or isinstance(scan.source, SetFile)):
        names[source.path] = source.name
        if isinstance(source, SetFile):
            folder = join(source.root, "")
            names[folder] = source.name.removesuffix(source.path.removeprefix(folder))
    return names


def rename_source(fault: str, names: Mapping[str, str]) -> str:
    """`fault` with its file as the dataset calls it."""
    path, colon, rest = fault.partition(": ")
    for folder in (name for name in names if name.endswith("/")):
        rest = rest.replace(folder, names[folder])  # a video, behind the data file whose episode it is of
    return f"{names.get(path, Path(path).name)}{colon}{rest}"
