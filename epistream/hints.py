"""What messages say of what somebody gave: the name that was meant, any value in short, alike faults as one line."""

import re
from collections.abc import Collection, Iterable
from reprlib import Repr
from typing import Any

_MOST_CHARACTERS = 80
_IN_SHORT = Repr()
_IN_SHORT.maxlevel = 3
_IN_SHORT.maxstring = _IN_SHORT.maxother = _IN_SHORT.maxlong = _MOST_CHARACTERS

# As many of a kind are told one by one; of more a line names as many places.
MOST_TOLD = 3

# What a message begins with: a file, an episode's group in it, several of these. Names may hold spaces.
_SUFFIXES = r"hdf5|h5|hdf|tar|index|tables|json|parquet|jpe?g|png"
_PLACE = re.compile(rf"(?:[^\n]*?\.(?:{_SUFFIXES})|[^\s:]*/[^:\n]*?|[a-z0-9+]+://\S+?)(?:: |, )", re.IGNORECASE)
_PATH = re.compile(r"[^\s'\"(),;]*/[^\s'\"(),;]*[^\s'\"(),;.:]")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def did_you_mean(name: str, known: Collection[str], otherwise: str = "") -> str:
    """The question whether the nearest known name was meant, or `otherwise` if none is near.

    Names with dots are also known by their last part.

    >>> did_you_mean("top", ["action", "observation.images.top"])
    "Did you mean 'observation.images.top'?"
    """
    from difflib import get_close_matches  # takes 5 ms, and only mistakes need it

    by_last = {one.rpartition(".")[2]: one for one in known}
    last = name.rpartition(".")[2]
    if name in by_last:
        near = [by_last[name]]
    else:
        # Whole names share their sections, which must not make them alike: they have to be nearer than last parts.
        near = get_close_matches(name, known, 1, 0.75)
        near = near or [by_last[one] for one in get_close_matches(last, by_last, 1)]
    return f"Did you mean {near[0]!r}?" if near else otherwise


def in_short(value: Any) -> str:
    """Any value as a message shows it: a `repr` of a line at most, whatever it is.

    A value that is nested a thousand times, an integer of more digits than Python writes, or one whose `repr` fails has
    a short text, too.
    """
    try:
        text = _IN_SHORT.repr(value)
    except Exception:
        return f"a value of type {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 2 * _MOST_CHARACTERS else f"{text[: 2 * _MOST_CHARACTERS]}..."


def grouped(texts: Iterable[str]) -> list[str]:
    """The messages, those of a kind that has many as one line, in the order of the first of each kind.

    Alike are messages that differ in paths and numbers only.

    >>> grouped(["a/1.h5: 3 steps, wanted 5.", "a/2.h5: torn."])
    ['a/1.h5: 3 steps, wanted 5.', 'a/2.h5: torn.']
    >>> grouped(f"a/{number}.h5: {number} steps, wanted 5." for number in range(300))
    ['300 alike: 0 steps, wanted 5. The first of them: a/0.h5, a/1.h5, a/2.h5']
    """
    kinds: dict[str, list[str]] = {}
    for text in texts:
        kinds.setdefault(_kind(text), []).append(text)
    lines: list[str] = []
    for alike in kinds.values():
        lines += alike if len(alike) <= MOST_TOLD else [_summed_up(alike)]
    return lines


def _summed_up(alike: list[str]) -> str:
    place, said = _split(alike[0])
    count = f"{len(alike):,} alike: {said.rstrip('.')}."
    if not place:
        return count
    places = list(dict.fromkeys(_split(text)[0] for text in alike))
    return f"{count} The first of them: {', '.join(places[:MOST_TOLD])}"


def _kind(text: str) -> str:
    """A message without paths and numbers."""
    place, said = _split(text)
    for name in place.split(": "):  # a message may name its file once more
        said = said.replace(name, "/") if name else said
    return _NUMBER.sub("0", _PATH.sub("/", said))


def _split(text: str) -> tuple[str, str]:
    """Where, and what: all places that a message begins with, and what is said of them."""
    stop = 0
    while found := _PLACE.match(text, stop):
        stop = found.end()
    return text[:stop].rstrip(" ,:"), text[stop:]
