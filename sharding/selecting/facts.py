"""What a selection may ask of the episodes that it chooses from."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from epistream.sharding.selecting.columns import Column

INDEX = "index"
# What every episode has; other names are those of attributes.
NAMES = (INDEX, "key", "source", "path", "task", "split", "length")
_MOST_CHARACTERS = 160
Constant = str | int | float | bool


class EpisodeFacts(Protocol):
    """What is known of E episodes; whoever is asked may keep what it found, and reads nothing before."""

    @property
    def url(self) -> str:
        """What they are of, for messages and for selections that were made of the same dataset."""

    @property
    def num_episodes(self) -> int:
        """E."""

    def column(self, name: str) -> Column:
        """What each has under one of `NAMES` but `INDEX`, which is its position.

        Raises:
            OptionError: If this cannot be known of them.
        """

    def attributes(self, names: Collection[str]) -> Mapping[str, Column]:
        """Their attributes of these names, of those that any of them has."""

    def attribute_names(self) -> Collection[str]:
        """The names of all attributes that any of them has."""


@dataclass(frozen=True, eq=False)
class KnownFacts:
    """What is known already, as `EpisodeFacts`.

    Args:
        url: What the episodes are of.
        num_episodes: E.
        columns: By name.
        known_attributes: By name.
    """

    url: str
    num_episodes: int
    columns: Mapping[str, Column] = field(default_factory=dict)
    known_attributes: Mapping[str, Column] = field(default_factory=dict)

    def column(self, name: str) -> Column:
        """As `EpisodeFacts.column`."""
        return self.columns[name]

    def attributes(self, names: Collection[str]) -> Mapping[str, Column]:
        """As `EpisodeFacts.attributes`."""
        return {name: self.known_attributes[name] for name in names if name in self.known_attributes}

    def attribute_names(self) -> Collection[str]:
        """As `EpisodeFacts.attribute_names`."""
        return list(self.known_attributes)


def called(facts: EpisodeFacts) -> str:
    """What messages call the dataset; that of many files has a long URL."""
    url = facts.url
    return url if len(url) <= _MOST_CHARACTERS else f"{url[:_MOST_CHARACTERS]}..."
