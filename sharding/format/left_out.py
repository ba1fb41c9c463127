"""What packing and streaming leave out by choice: what is bad, and what is unlike most episodes."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from epistream.errors import FormatError, LayoutError, SourceChangedError, SourceError
from epistream.hints import grouped
from epistream.sharding.format.feature_sets import describe_difference
from epistream.sharding.format.features import Feature

S = TypeVar("S")
T = TypeVar("T")

_log = logging.getLogger(__name__)

# What the reason says of what is whole, and has other features.
UNLIKE = "wanted the features that most episodes have"
# Of one reason to leave paths out, as many are named.
_MOST_PATHS = 6
# What says that a file is bad, and not that it was asked for wrongly.
BAD_FILE = (SourceError, SourceChangedError, LayoutError, FormatError)


def sentence(error: BaseException) -> str:
    """The reason to leave something out."""
    # Python quotes the message of a KeyError, which is what h5py raises for what it cannot open.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return text if text.endswith(".") else f"{text}."


def tell_left_out(reasons: Iterable[str]) -> None:
    """Tell in the log why things are left out: a warning each, or one for many that are alike."""
    for line in grouped(reasons):
        _log.warning("left out: %s", line)


def left_out_lines(entries: Iterable[str]) -> list[str]:
    """What of the files is not packed, those of one reason on a line.

    >>> left_out_lines(["/a (text; wanted numbers)", "/b", "/c (text; wanted numbers)"])
    ['/a, /c (text; wanted numbers)', '/b']

    Args:
        entries: Paths, each with the reason in brackets behind it where there is one.
    """
    kinds: dict[str, tuple[str, list[str]]] = {}
    for entry in entries:
        path, bracket, reason = entry.partition(" (")
        reason = bracket + reason
        kinds.setdefault(re.sub(r"\d+", "0", reason), (reason, []))[1].append(path)
    lines = []
    for reason, paths in kinds.values():
        more = f" and {len(paths) - _MOST_PATHS:,} more" if len(paths) > _MOST_PATHS else ""
        lines.append(f"{', '.join(paths[:_MOST_PATHS])}{more}{reason}")
    return lines


def open_good(
    things: Sequence[S],
    open_one: Callable[[S], T],
    names: Callable[[S], Sequence[str]],
    pieces: Callable[[S], Sequence[S]] = lambda thing: [thing],
) -> tuple[list[T], dict[str, str]]:
    """Open what can be opened.

    Args:
        things: What to open.
        open_one: Opens one, or raises what is wrong with it.
        names: Those of one in messages.
        pieces: Of one that is bad; if they are several, each is tried by itself.

    Returns:
        What was opened, in order, and why each of the others was not, by its name.

    Raises:
        SourceError, SourceChangedError, LayoutError, FormatError: That of the first one, if none can be opened.
    """
    opened: list[T] = []
    bad: list[tuple[Sequence[str], str]] = []
    first: Exception | None = None
    waiting = list(reversed(things))
    while waiting:
        thing = waiting.pop()
        try:
            opened.append(open_one(thing))
        except BAD_FILE as error:
            first = first or error
            parts = pieces(thing)
            if len(parts) > 1:
                waiting += reversed(parts)
            else:
                bad.append((names(thing), sentence(error)))
    if not opened and first:
        raise first
    # Only now: who left all of it out may try it in pieces, and would tell of each twice.
    tell_left_out(reason for _, reason in bad)
    return opened, {name: reason for mine, reason in bad for name in mine}


def usual_features(votes: Iterable[tuple[Mapping[str, Feature], int]]) -> Mapping[str, Feature]:
    """The features that most episodes have; at a tie, those that come first.

    Args:
        votes: Features, at least once, and the number of episodes that have them.
    """
    counts: list[tuple[Mapping[str, Feature], int]] = []
    for mine, num_episodes in votes:
        for position, (others, count) in enumerate(counts):
            if describe_difference(mine, others) is None:
                counts[position] = others, count + num_episodes
                break
        else:
            counts.append((mine, num_episodes))
    return max(counts, key=lambda group: group[1])[0]


def oddity(mine: Mapping[str, Feature], usual: Mapping[str, Feature]) -> str | None:
    """How the features of an episode differ from the usual ones, or None."""
    difference = describe_difference(mine, usual)
    return difference and f"{difference}, {UNLIKE}"
