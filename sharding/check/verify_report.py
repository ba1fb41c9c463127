"""How thoroughly to verify a dataset, and what was found."""

from dataclasses import dataclass, field

from epistream.errors import OptionError


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it should be: where, what was found, what was wanted."""

    file: str
    member: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.file}{', ' if self.member else ''}{self.member}: {self.found}, wanted {self.wanted}"


@dataclass(frozen=True)
class VerifyOptions:
    """How thoroughly to look.

    Args:
        sample: Decode at most this many frames a camera and shard, evenly spread; None for all, 0 for none.
        statistics: Compare the manifest's extremes and means with those of the values.
        num_threads: Shards checked at once. Decoding and hashing run in parallel, Python does not.
    """

    sample: int | None = None
    statistics: bool = False
    num_threads: int = 2

    def __post_init__(self) -> None:
        if (self.sample is not None and self.sample < 0) or self.num_threads < 1:
            raise OptionError(f"verify: sample {self.sample} and {self.num_threads} threads, wanted >= 0 and >= 1.")


@dataclass
class Report:
    """What was looked at, and what was wrong with it."""

    faults: list[Fault] = field(default_factory=list)
    num_shards: int = 0
    num_episodes: int = 0
    num_frames: int = 0
    num_bytes: int = 0
