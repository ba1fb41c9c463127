"""What a selection is made of: terms that pickle, each of which says of the episodes of a dataset which it means."""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from epistream.errors import OptionError
from epistream.hints import did_you_mean, in_short
from epistream.sharding.selecting.columns import Column, Int64, Rows
from epistream.sharding.selecting.comparing import fitting, kind_of
from epistream.sharding.selecting.facts import INDEX, NAMES, Constant, EpisodeFacts, called
from epistream.units import count_text

_MOST_NAMES = 12


@runtime_checkable  # options hold selections, and what checks those wants to be able to ask
class Term(Protocol):
    """A part of a selection."""

    @property
    def names(self) -> frozenset[str]:
        """What it asks of episodes: some of `NAMES`, and attributes with an ``@`` before each."""

    def rows(self, facts: EpisodeFacts) -> Rows:
        """(E,) whether it means each episode.

        Raises:
            OptionError: If it cannot be asked of these episodes.
        """


@dataclass(frozen=True)
class Place:
    """Where in a selection something stands.

    Args:
        text: All of it.
        start: The first character.
        stop: Behind the last one.
    """

    text: str
    start: int
    stop: int

    def error(self, what: str) -> OptionError:
        """An error that begins with the place and ends with `what`."""
        part = in_short(self.text[self.start : self.stop])
        where = f" of {in_short(self.text)}, character {self.start + 1}" if part != in_short(self.text) else ""
        return OptionError(f"episodes: {part}{where}: {what}")


@dataclass(frozen=True)
class Numbers:
    """Some positions; from the end those below 0.

    Args:
        numbers: (N,) int64.
        place: Where they stand.
    """

    numbers: Int64
    place: Place

    names = frozenset[str]()

    def rows(self, facts: EpisodeFacts) -> Rows:
        """As `Term.rows`."""
        count = facts.num_episodes
        wrong = (self.numbers >= count) | (self.numbers < -count)
        if wrong.any():
            number = int(self.numbers[int(np.argmax(wrong))])
            raise self.place.error(
                f"no episode {number} of {called(facts)}, wanted 0 to {count - 1}, or -{count} to -1 from the end."
            )
        rows = np.zeros(count, np.bool_)
        rows[self.numbers] = True
        return rows


@dataclass(frozen=True)
class Span:
    """Positions from one up to another, as slices of Python have them."""

    start: int | None
    stop: int | None
    step: int | None

    names = frozenset[str]()

    def rows(self, facts: EpisodeFacts) -> Rows:
        """As `Term.rows`."""
        rows = np.zeros(facts.num_episodes, np.bool_)
        rows[self.start : self.stop : self.step] = True
        return rows


@dataclass(frozen=True)
class Mask:
    """(E,) whether each episode is meant."""

    mask: Rows

    names = frozenset[str]()

    def rows(self, facts: EpisodeFacts) -> Rows:
        """As `Term.rows`."""
        if len(self.mask) != facts.num_episodes:
            raise OptionError(
                f"episodes: {count_text(len(self.mask), 'truth value')}, wanted one for each of the "
                f"{count_text(facts.num_episodes, 'episode')} of {facts.url}."
            )
        rows: Rows = self.mask.copy()
        return rows


@dataclass(frozen=True)
class Joined:
    """Several terms: those of all of them, or of any.

    Args:
        terms: At least one.
        is_all: Whether an episode must be meant by all.
    """

    terms: Sequence[Term]
    is_all: bool

    @property
    def names(self) -> frozenset[str]:
        """As `Term.names`."""
        return frozenset().union(*(term.names for term in self.terms))

    def rows(self, facts: EpisodeFacts) -> Rows:
        """As `Term.rows`."""
        join = operator.and_ if self.is_all else operator.or_
        found: Rows = functools.reduce(join, (term.rows(facts) for term in self.terms))
        return found


@dataclass(frozen=True)
class Other:
    """The episodes that a term does not mean."""

    term: Term

    @property
    def names(self) -> frozenset[str]:
        """As `Term.names`."""
        return self.term.names

    def rows(self, facts: EpisodeFacts) -> Rows:
        """As `Term.rows`."""
        found: Rows = ~self.term.rows(facts)
        return found


@dataclass(frozen=True)
class Every:
    """All episodes, or none."""

    is_all: bool

    names = frozenset[str]()

    def rows(self, facts: EpisodeFacts) -> Rows:
        """As `Term.rows`."""
        return np.full(facts.num_episodes, self.is_all)


@dataclass(frozen=True)
class Name:
    """A name in a selection.

    Args:
        name: One of `NAMES`, or an attribute's.
        is_attribute: Whether it was said that it is an attribute.
        place: Where it stands.
    """

    name: str
    is_attribute: bool
    place: Place

    @property
    def names(self) -> frozenset[str]:
        """As `Term.names`."""
        return frozenset([self.name if self.is_known else f"@{self.name}"])

    @property
    def is_known(self) -> bool:
        """Whether it is one of `NAMES`, which every episode has."""
        return self.name in NAMES and not self.is_attribute

    def column(self, facts: EpisodeFacts) -> Column:
        """What episodes have under it.

        Raises:
            OptionError: If no episode has such an attribute; those that there are are named.
        """
        if self.is_known:
            if self.name == INDEX:
                return Column.of_integers(np.arange(facts.num_episodes))
            return facts.column(self.name)
        found = facts.attributes([self.name]).get(self.name)
        if found is not None:
            return found
        known = sorted(facts.attribute_names())
        told = ", ".join(known[:_MOST_NAMES]) + ", ..." * (len(known) > _MOST_NAMES)
        there = f"Attributes are {told}; other names {', '.join(NAMES)}." if known else f"Names are {', '.join(NAMES)}."
        meant = did_you_mean(self.name, [*NAMES, *known])
        if self.name.endswith((".json", ".txt")):
            meant = f"A file that lists episodes is given as @{self.name}."
        raise self.place.error(
            f"no episode of {called(facts)} has an attribute of this name. {f'{meant} ' if meant else ''}{there}"
        )

    def rows(self, facts: EpisodeFacts) -> Rows:
        """As `Term.rows`: the episodes where it is true, or not 0."""
        column = self.column(facts)
        if self.is_known or (column.values and all(isinstance(value, str) for value in column.values)):
            found = kind_of(column.values)
            raise self.place.error(f"{found}, wanted a truth value. Compare it: {self.place_text} == ...")
        return column.rows([not isinstance(value, str) and bool(value) for value in column.values])

    @property
    def place_text(self) -> str:
        """It as the selection has it."""
        return self.place.text[self.place.start : self.place.stop]


@dataclass(frozen=True)
class Comparison:
    """A name compared with what the selection says.

    Args:
        name: Of what episodes have.
        sign: As `comparing.test_of` has it.
        wanted: What the selection says.
        is_not: Whether the episodes are meant that have a value, and none that fits.
        place: Where it stands.
    """

    name: Name
    sign: str
    wanted: Constant | tuple[Constant, ...]
    is_not: bool
    place: Place

    @property
    def names(self) -> frozenset[str]:
        """As `Term.names`."""
        return self.name.names

    def rows(self, facts: EpisodeFacts) -> Rows:
        """As `Term.rows`."""
        column = self.name.column(facts)
        of_paths = self.name.is_known and self.name.name == "source"
        fits = fitting(column.values, self.sign, self.wanted, of_paths=of_paths)
        if fits is None:
            what = "a text in quotes" if isinstance(column.values[0], str) else "a number or truth value without quotes"
            raise self.place.error(f"{self.name.place_text} holds {kind_of(column.values)}, wanted {what}.")
        rows = column.rows(fits)
        return column.present & ~rows if self.is_not else rows
