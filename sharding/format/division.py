"""Which episodes are for validation: one choice for packing and for files that are read where they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import xxhash

from epistream.options import Range, check
from epistream.units import count_text

Share = Annotated[float, Range(gt=0, lt=1)]
SplitSeed = Annotated[int, Range(ge=0, le=1 << 63), "an integer from 0 to 2**63"]
NAMES = ("train", "val")


@dataclass(frozen=True)
class Division:
    """Episodes divided into ``train`` and ``val``.

    Args:
        val_fraction: share of the episodes for ``val``; at least one, and not all.
        split_seed: which episodes those are.

    Raises:
        OptionError: If either lies outside its range.
    """

    val_fraction: Share
    split_seed: SplitSeed = 0

    def __post_init__(self) -> None:
        check(self)

    def names(self, num_episodes: int) -> list[str]:
        """The split of each episode, in the order of the dataset.

        Ranks are hashed, so that the same seed and number of episodes give the same choice on every machine.
        """
        hashed = [xxhash.xxh3_64_intdigest(f"{i}".encode(), self.split_seed) for i in range(num_episodes)]
        ranks = sorted(range(num_episodes), key=lambda i: (hashed[i], i))
        num_val = min(max(1, round(num_episodes * self.val_fraction)), num_episodes - 1)
        chosen = set(ranks[:num_val])
        return ["val" if i in chosen else "train" for i in range(num_episodes)]

    def note(self, splits: Mapping[str, int]) -> str | None:
        """What the wanted share could not be, or was only rounded; None if it is what was wanted.

        Args:
            splits: Episodes by split.
        """
        num_episodes, num_val = sum(splits.values()), splits.get("val", 0)
        wanted = f"val_fraction {self.val_fraction:g} of {count_text(num_episodes, 'episode')}"
        if num_episodes == 1:
            return f"{wanted}: one cannot be divided. All of it is {' and '.join(splits)}; there is no other split."
        if len(splits) == 1:
            return f"{wanted}: all that are left are {' and '.join(splits)}; there is no other split."
        if abs(num_val - self.val_fraction * num_episodes) > 0.5 + 1e-9:
            return f"{wanted}: {num_val:,} ({num_val / num_episodes:.0%}) are val, as each split has at least one."
        return None
