"""What is saved to resume a stream, and the check that a state means the same order."""

import operator
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from epistream.errors import StateError
from epistream.hints import in_short
from epistream.loader.reading.job import ReadJob

STATE_VERSION = 1
# Mixtures of more datasets than this save less of each, under a version of their own; earlier releases read the others.
_FEW_DATASETS = 8
_SHORT_VERSION = 2
# Beside what decides the order; earlier releases do not save it, nor look at it.
_NUM_GIVEN = "num_batches_given"
# Digits of a plan's fingerprint that are saved then, which tell any two plans apart.
_PLAN_DIGITS = 16
# Of each value of a mixture's datasets, so many are told where they differ from those of a state.
_MOST_DIFFERENCES = 3
# What a cell holds, and all that is counted from it.
MOST_EPOCHS = 1 << 62


class Place(NamedTuple):
    """Where a run stands in its epochs.

    Attributes:
        epoch: the epoch.
        position: windows of it that are consumed, over all ranks.
        num_given: batches of it that the loop was given, on each rank and also before a resume; None where a state of
            an earlier release does not say it.
    """

    epoch: int
    position: int
    num_given: int | None = 0


def make_state(job: ReadJob, place: Place) -> dict[str, Any]:
    """The state of a job whose loop stands at `place`."""
    is_short = len(job.parts) > _FEW_DATASETS
    state = {
        "version": _SHORT_VERSION if is_short else STATE_VERSION,
        "epoch": place.epoch,
        "position": place.position,
        **(_short(job.identity) if is_short else job.identity),
    }
    if place.num_given:
        state[_NUM_GIVEN] = place.num_given
    return state


def check_state(job: ReadJob, state: Mapping[str, Any]) -> Place:
    """Where a saved state was taken.

    World size, workers and batch size may differ from the run that saved it; what decides the order may not.

    Raises:
        StateError: not a state of ours, of another version, or of a stream with another order; names both values.
    """
    check_keys(state, ("version", "epoch", "position"), "state_dict()")
    version = whole_number(state["version"])
    if version not in (STATE_VERSION, _SHORT_VERSION):
        raise StateError(
            f"state: version is {in_short(state['version'])}, this release reads versions {STATE_VERSION} and "
            f"{_SHORT_VERSION}. Resume with the release that saved it."
        )
    # Orders by windows do not say so, as those of releases that knew no others.
    ours, saved = ({"by": "windows", **each} for each in (job.identity, _plain_values(state)))
    if version == _SHORT_VERSION:
        ours = _short(ours)
    different = list(_differences(saved, ours))
    if different:
        was = saved.get("dataset")
        edited = f" If the dataset was edited since, stream URL@{was:.8}." if isinstance(was, str) else ""
        raise StateError(
            f"state: {'; '.join(different)}. Make the stream with the saved values, or start a new run without this "
            f"state.{edited if was != ours.get('dataset') else ''}"
        )
    epoch = read_number(state, "epoch", MOST_EPOCHS)
    position = read_number(state, "position", job.num_windows)
    num_given = read_number(state, _NUM_GIVEN, position) if _NUM_GIVEN in state else None if position else 0
    return Place(epoch, position, num_given)


def check_keys(state: Any, wanted: Collection[str], made_by: str) -> None:
    """Refuse what is no mapping with these keys.

    Raises:
        StateError: it is none; names what is missing.
    """
    if not isinstance(state, Mapping):
        raise StateError(f"state: {in_short(state)}, wanted the dict that {made_by} returned.")
    missing = [name for name in wanted if name not in state]
    if missing:
        raise StateError(
            f"state: {', '.join(missing)} missing from {in_short(sorted(map(str, state)))}, wanted all that {made_by} "
            "returned."
        )


def read_number(state: Mapping[str, Any], name: str, most: int, least: int = 0) -> int:
    """A number of a state.

    Raises:
        StateError: it is no integer of Python's, numpy's or torch's, or out of bounds.
    """
    number = whole_number(state[name])
    if number is None or not least <= number <= most:
        raise StateError(
            f"state: {name} is {in_short(state[name])}, wanted an integer of {least} to {most}. Load what state_dict() "
            "returned."
        )
    return number


def whole_number(value: Any) -> int | None:
    """The integer that a value is, also where numpy or torch holds it; None for all else, True and False included."""
    if isinstance(value, bool) or "bool" in str(getattr(value, "dtype", "")):
        return None
    with suppress(Exception):  # a tensor on no device, or a class of anybody's
        return operator.index(value)
    return None


def _plain_values(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in state.items()}


def _plain(value: Any, is_item: bool = False) -> Any:
    """A text, a number, a truth value, or a list of these, as Python has them; anything else as it is."""
    number = whole_number(value)
    if number is not None:
        return number
    with suppress(Exception):
        value = value.tolist() if hasattr(value, "tolist") else value
    if isinstance(value, list | tuple) and not is_item:
        return [_plain(item, is_item=True) for item in value]
    return value


def _differences(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """What differs, in words; of mixtures only the datasets that do."""
    numbers = [len(each["dataset"]) if isinstance(each.get("dataset"), list) else 0 for each in (saved, ours)]
    if numbers[0] != numbers[1]:  # then everything else is of another length, too
        texts = [
            f"a mixture of {number:,}" if number else _told(each, "dataset")
            for number, each in zip(numbers, (saved, ours), strict=True)
        ]
        yield f"dataset is {texts[0]}, this stream has {texts[1]}"
        return
    for name, value in ours.items():
        was = saved.get(name)
        if isinstance(was, list) and isinstance(value, list) and len(was) == len(value):
            pairs = [(f"{name}[{number}]", *pair) for number, pair in enumerate(zip(was, value, strict=True))]
            pairs = [pair for pair in pairs if not _is_equal(*pair[1:])]
            for where, theirs, own in pairs[:_MOST_DIFFERENCES]:
                yield f"{where} is {in_short(theirs)}, this stream has {in_short(own)}"
            if len(pairs) > _MOST_DIFFERENCES:
                yield f"and {len(pairs) - _MOST_DIFFERENCES} more of {name}"
        elif not _is_equal(was, value):
            yield f"{name} is {_told(saved, name)}, this stream has {in_short(value)}"


def _is_equal(saved: Any, own: Any) -> bool:
    """Whether both are the same text, number or truth value; 1 is not True."""
    if isinstance(own, str):
        return isinstance(saved, str) and saved == own
    return type(saved) is type(own) and not isinstance(own, list) and bool(saved == own)


def _told(state: Mapping[str, Any], name: str) -> str:
    return in_short(state[name]) if name in state else "missing"


def _short(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What is saved of a mixture of many: the window of all its datasets once, and plans by fewer digits."""
    short = dict(identity)
    windows, plans = identity.get("window"), identity.get("plans")
    if isinstance(windows, list) and len(set(windows)) == 1:
        short["window"] = windows[0]
    if isinstance(plans, list):
        short["plans"] = [str(plan)[:_PLAN_DIGITS] for plan in plans]
    return short
