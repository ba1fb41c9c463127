"""One way to say "did you mean"."""

from collections.abc import Collection


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
