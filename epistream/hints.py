"""What messages say of what somebody gave: the name that was meant, and any value in short."""

from collections.abc import Collection
from reprlib import Repr
from typing import Any

_MOST_CHARACTERS = 80
_IN_SHORT = Repr()
_IN_SHORT.maxlevel = 3
_IN_SHORT.maxstring = _IN_SHORT.maxother = _IN_SHORT.maxlong = _MOST_CHARACTERS


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
