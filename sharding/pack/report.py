"""What a packing job tells while it runs, and when it is done."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from epistream.sharding.format.features import Feature
from epistream.sharding.format.statistics import NotFinite
from epistream.sharding.pack.encoding import Fidelity


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
        layouts: Files by layout.
        features: By name.
        splits: Episodes by split.
        num_episodes: Packed.
        num_steps: Of all episodes.
        num_shards: Tars.
        num_resumed: Of these, complete from an interrupted job.
        source_bytes: What the episodes take in the source.
        num_bytes: Of all tars.
        seconds: Wall time.
        faults: What was left out, and why (with ``skip_bad``).
        left_out: Paths in the sources that were not packed.
        outside_files: Files outside of the sources' folders that these read from (with ``allow_outside_files``).
        not_finite: feature -> how many of its values are NaN or infinite, for those that have any.
        fidelity: camera -> what lossy encoding cost it, for those that were encoded as JPEG.
    """

    url: str
    fingerprint: str
    layouts: Mapping[str, int]
    features: Mapping[str, Feature]
    splits: Mapping[str, int]
    num_episodes: int
    num_steps: int
    num_shards: int
    num_resumed: int
    source_bytes: int
    num_bytes: int
    seconds: float
    faults: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    fidelity: Mapping[str, Fidelity] = field(default_factory=dict)
    outside_files: tuple[str, ...] = ()
    not_finite: Mapping[str, NotFinite] = field(default_factory=dict)


Listener = Callable[[PackProgress], None]


def rename_source(fault: str, names: Mapping[str, str]) -> str:
    """`fault` with its file as the dataset calls it."""
    path, colon, rest = fault.partition(": ")
    return f"{names.get(path, Path(path).name)}{colon}{rest}"
