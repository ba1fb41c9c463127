"""What is known of each episode under one name: every distinct value once, so that a question is asked of few."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Rows = NDArray[np.bool_]
# Of a text that is longer nobody asks whether it is another; prompts and simulator models ride in attributes.
_MOST_CHARACTERS = 200
_MOST_DEPTH = 8


@dataclass(frozen=True, eq=False)
class Column:
    """The values of E episodes under one name. N values, of which an episode has one, none, or several (its tasks).

    Args:
        values: Each distinct one once: texts, numbers, truth values.
        numbers: (N,) position in `values`.
        episodes: (N,) episode that has it; None where value n is that of episode n.
        num_episodes: E.
    """

    values: Sequence[Any]
    numbers: Int64
    episodes: Int64 | None
    num_episodes: int

    @classmethod
    def of(cls, values: Sequence[Any]) -> "Column":
        """One value of each episode (E,), None where it has none."""
        known: dict[Any, int] = {}
        numbers = np.array([-1 if one is None else known.setdefault(one, len(known)) for one in values], np.int64)
        there = np.flatnonzero(numbers >= 0)
        if len(there) == len(numbers):
            return cls(list(known), numbers, None, len(numbers))
        return cls(list(known), numbers[there], there, len(numbers))

    def of_each(self) -> list[Any]:
        """The value of each episode, its first one; None where it has none."""
        found: list[Any] = [None] * self.num_episodes
        episodes = range(self.num_episodes) if self.episodes is None else self.episodes.tolist()
        for episode, number in zip(episodes, self.numbers.tolist(), strict=True):
            found[episode] = self.values[number] if found[episode] is None else found[episode]
        return found

    @classmethod
    def of_integers(cls, values: Int64) -> "Column":
        """One whole number of each episode (E,)."""
        distinct, numbers = np.unique(values, return_inverse=True)
        return cls(distinct.tolist(), numbers.astype(np.int64), None, len(values))

    @classmethod
    def of_tasks(cls, tasks: Sequence[str], offsets: Int64, ids: Int64) -> "Column":
        """The instructions of each episode, the empty text of those that have none.

        Args:
            tasks: Every instruction once.
            offsets: (E + 1,) where those of an episode begin and end in `ids`.
            ids: Positions in `tasks`.
        """
        counts = np.diff(offsets)
        without = np.flatnonzero(counts == 0)
        episodes = np.concatenate([np.repeat(np.arange(len(counts)), counts), without])
        numbers = np.concatenate([np.asarray(ids, np.int64), np.full(len(without), len(tasks), np.int64)])
        return cls([*tasks, *([""] if len(without) else [])], numbers, episodes, len(counts))

    @property
    def present(self) -> Rows:
        """(E,) whether an episode has a value."""
        rows = np.ones(self.num_episodes, np.bool_)
        if self.episodes is not None:
            rows[:] = False
            rows[self.episodes] = True
        return rows

    def rows(self, fits: Sequence[bool]) -> Rows:
        """(E,) whether an episode has a value that fits, of each distinct value whether it does."""
        chosen: Rows = np.array(fits, np.bool_)[self.numbers] if len(self.values) else np.zeros(0, np.bool_)
        if self.episodes is None:
            return chosen
        rows = np.zeros(self.num_episodes, np.bool_)
        rows[self.episodes[chosen]] = True
        return rows


def flat_attributes(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The scalar ones of an episode by their names, those of a map in a map with dots; lists and long texts left out.

    >>> flat_attributes({"success": True, "env": {"seed": 3, "sizes": [1, 2]}})
    {'success': True, 'env.seed': 3}
    """
    found: dict[str, Any] = {}
    waiting = [("", attributes, 0)]
    while waiting:
        before, values, depth = waiting.pop(0)
        for name, value in values.items():
            if isinstance(value, Mapping):
                waiting += [(f"{before}{name}.", value, depth + 1)] if depth < _MOST_DEPTH else []
            elif type(value) in (bool, int, float) or (type(value) is str and len(value) <= _MOST_CHARACTERS):
                found.setdefault(f"{before}{name}", value)
    return found


def attribute_lists(attributes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """By name of an attribute that any episode has, the value of each episode (E,), None where it has none.

    Args:
        attributes: Of each episode, by name.
    """
    columns: dict[str, list[Any]] = {}
    for number, mine in enumerate(attributes):
        for name, value in mine.items():
            columns.setdefault(name, [None] * len(attributes))[number] = value
    return columns
