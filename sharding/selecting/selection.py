"""A selection of episodes: what a user gives to say which ones, and what it means in a dataset."""

from collections.abc import Collection, Set
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from epistream.errors import OptionError
from epistream.hints import in_short
from epistream.sharding.selecting.columns import Rows
from epistream.sharding.selecting.facts import EpisodeFacts, called
from epistream.sharding.selecting.language import parse
from epistream.sharding.selecting.listed import Listed
from epistream.sharding.selecting.selection_file import ListedEpisodes, read_selection
from epistream.sharding.selecting.terms import Mask, Numbers, Place, Term
from epistream.units import count_text

# As options take it: a text of the language, the number of an episode, several of them, or a truth value of each.
Episodes = str | int | Collection[int]
_FEW = 20
# Of arrays: axes, and numpy's letters of whole numbers and truth values.
_KINDS = ((0, "i"), (0, "u"), (1, "i"), (1, "u"), (1, "b"))
_MOST_NUMBERS = 1 << 28


@dataclass(frozen=True, eq=False)
class Selection:
    """Which episodes are meant, whatever dataset it is of; `parse_selection` makes one. Pickles.

    Args:
        text: What was given, in a line.
        term: What it means.
        digest: XXH3-64, hexadecimal, of files that it names and of long lists of numbers; empty without.
    """

    text: str
    term: Term
    digest: str = ""

    @property
    def names(self) -> frozenset[str]:
        """What it asks of episodes beside their number and what files list: ``task``, or ``@success`` of attributes."""
        return self.term.names

    @property
    def identity(self) -> str:
        """What two selections have in common that mean the same in any dataset."""
        return f"{self.text} #{self.digest}" if self.digest else self.text

    def rows(self, facts: EpisodeFacts) -> Rows:
        """(E,) bool, whether each episode is meant; a new array.

        Args:
            facts: What is known of the episodes.

        Raises:
            OptionError: If it asks what cannot be known of them, or means none of them.
            SourceError, FormatError: If what it asks of them cannot be read.
        """
        rows = self.term.rows(facts)
        if not rows.any():
            raise OptionError(
                f"{called(facts)}: episodes {in_short(self.text)}: none of "
                f"{count_text(facts.num_episodes, 'episode')}, wanted at least one. 'epistream inspect SOURCE "
                "--episodes :' lists what there is."
            )
        return rows

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Selection) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    def __repr__(self) -> str:
        return f"Selection({in_short(self.text)})"


def parse_selection(value: "Episodes | Selection") -> Selection:
    """A selection from what a user gave.

    Args:
        value: A text of the language (``0:100, 120``, ``success and length < 500``, ``@FILE``), a number, a range, a
            list or array of numbers (below 0 from the end), or an array with a truth value for each episode.

    Raises:
        OptionError: If it is none of these; of a text the message has the place.
        SourceError, FormatError: If a file that it names cannot be read, or lists no episodes.
    """
    if isinstance(value, Selection):
        return value
    if isinstance(value, str):
        return _of_text(value)
    if isinstance(value, range) and len(value) > _MOST_NUMBERS:
        raise OptionError(f"episodes: {value!r}, wanted at most {_MOST_NUMBERS:,} numbers.")
    if isinstance(value, Set):
        value = sorted(value)
    if isinstance(value, list | tuple | range) and not value:
        raise OptionError("episodes: an empty list, wanted at least one. Leave it out for all.")
    array = _array(value)
    if array is None or (array.ndim, array.dtype.kind) not in _KINDS:
        raise OptionError(
            f"episodes: {in_short(value)}, wanted a text such as '0:100' or 'success and length < 500', numbers, or a "
            "truth value for each episode."
        )
    if array.dtype.kind == "b":
        digest = xxhash.xxh3_64_hexdigest(np.packbits(array).tobytes() + len(array).to_bytes(8, "little"))
        return Selection(f"{int(array.sum())} of {len(array)}", Mask(array.copy()), digest)
    numbers = np.atleast_1d(array).astype(np.int64)
    text = ", ".join(map(str, numbers[:_FEW].tolist()))
    if len(numbers) <= _FEW:
        return Selection(text, Numbers(numbers, Place(text, 0, len(text))))
    text = f"{len(numbers)} numbers, {text}, ..."
    return Selection(text, Numbers(numbers, Place(text, 0, len(text))), xxhash.xxh3_64_hexdigest(numbers.tobytes()))


def _array(value: Any) -> Any:
    """The value as an array; None if it is none of whole numbers or truth values alone."""
    if isinstance(value, list | tuple):
        kinds = {isinstance(one, bool | np.bool_) for one in value}
        if len(kinds) > 1:
            return None
    try:
        return np.asarray(value) if not isinstance(value, range) else np.arange(value.start, value.stop, value.step)
    except (ValueError, TypeError, OverflowError):
        return None


def _of_text(text: str) -> Selection:
    text = text.replace("\r\n", "\n").replace("\r", "\n").strip()
    digests: list[str] = []

    def read_file(name: str) -> Term:
        found: ListedEpisodes = read_selection(name)
        digests.append(found.digest)
        return Listed(found)

    if text.startswith("@"):
        if not text[1:].strip():
            raise OptionError("episodes: '@' without a file, wanted @FILE.")
        term = read_file(text[1:].strip())
    else:
        term = parse(text, read_file)
    return Selection(text, term, " ".join(digests))
