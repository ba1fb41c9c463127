"""Which episodes are for validation: one choice for packing and for files that are read where they are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import xxhash

from epistream.options import Range, check
from epistream.units import count_text

Share = Annotated[float, Range(gt=0, lt=1)]
SplitSeed = Annotated[int, Range(ge=0, le=1 << 63), "an integer from 0 to 2**63"]
NAMES = ("train", "val")
# A note tells of a share that is off by more than chance has it in 1 of 370 sets: 3 standard deviations.
_SPREAD = 3


@dataclass(frozen=True)
class Division:
    """Episodes divided into ``train`` and ``val``, each by what it is called, whatever others there are.

    Args:
        val_fraction: chance of an episode to be in ``val``; there is at least one in each split.
        split_seed: which episodes those are.

    Raises:
        OptionError: If either lies outside its range.
    """

    val_fraction: Share
    split_seed: SplitSeed = 0
    fills_both: bool = True

    def __post_init__(self) -> None:
        check(self)

    def names(self, identities: Sequence[str]) -> list[str]:
        """The split of each episode, in the order given.

        An episode is in ``val`` if the hash of its identity is below `val_fraction` of all hashes: on every machine,
        and beside any other episodes. Only where that puts all into one split does the one with the lowest or highest
        hash make the other.

        Args:
            identities: Of the episodes, as `identity_of` makes them.
        """
        hashed = [xxhash.xxh3_64_intdigest(one.encode(errors="surrogateescape"), self.split_seed) for one in identities]
        names = ["val" if one < self.val_fraction * 2**64 else "train" for one in hashed]
        if not self.fills_both:
            return names
        if len(names) == 1:
            return ["train"]
        if names and "val" not in names:
            names[hashed.index(min(hashed))] = "val"
        elif names and "train" not in names:
            names[hashed.index(max(hashed))] = "train"
        return names

    def note(self, splits: Mapping[str, int]) -> str | None:
        """Where the share is not about what was wanted, and why; None if it is.

        Args:
            splits: Episodes by split.
        """
        num_episodes, num_val = sum(splits.values()), splits.get("val", 0)
        wanted = f"val_fraction {self.val_fraction:g} of {count_text(num_episodes, 'episode')}"
        if num_episodes == 1:
            return f"{wanted}: one cannot be divided. All of it is {' and '.join(splits)}; there is no other split."
        if len(splits) == 1:
            return f"{wanted}: all that are left are {' and '.join(splits)}; there is no other split."
        expected = self.val_fraction * num_episodes
        spread = _SPREAD * (expected * (1 - self.val_fraction)) ** 0.5
        found = f"{wanted}: {num_val:,} ({num_val / num_episodes:.0%}) are val"
        if min(num_val, num_episodes - num_val) == 1 and abs(num_val - expected) > 0.5 + 1e-9:
            return f"{found}, as each split has at least one."
        if abs(num_val - expected) > spread + 1:
            return f"{found}: each is chosen by its own name. Another split_seed makes another choice."
        return None


def lerobot_identity(number: int, length: int) -> str:
    """As `identity_of`, of an episode of a LeRobot data set by its number there; packing names it so."""
    return identity_of(".parquet", f"episode {number}", length, 0)


def identity_of(source: str, path: str, length: int, file_bytes: int) -> str:
    """What an episode is called for good: it is the same in whatever folder, and beside whatever other files, it lies.

    Args:
        source: The file that it comes from; the folders before its name do not count, and of LeRobot's data files,
            which are written anew when episodes are added, nothing does.
        path: Of the episode in that file.
        length: Its steps.
        file_bytes: Size of the file; it counts where the file is all one episode, else more may be added to it.
    """
    name = "" if source.endswith(".parquet") else source.replace("\\", "/").rpartition("/")[2]
    size = file_bytes if not path.strip("/") and name else 0
    return f"{name}\n{path.strip('/')}\n{length}\n{size}"
