"""What is saved to resume a stream, and the check that a state means the same order."""

import operator
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from epistream.errors import StateError
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
    if not isinstance(state, Mapping) or not {"version", "epoch", "position"} <= set(state):
        raise StateError(f"state: {state!r:.200}, wanted what state_dict() returned.")
    if state["version"] not in (STATE_VERSION, _SHORT_VERSION):
        raise StateError(
            f"state: version {state['version']}, this release reads versions {STATE_VERSION} and {_SHORT_VERSION}. "
            "Resume with the release that saved it."
        )
    ours, saved = (_short(each) if state["version"] == _SHORT_VERSION else each for each in (job.identity, state))
    different = list(_differences(saved, ours))
    if different:
        raise StateError(
            f"state: {'; '.join(different)}. Make the stream with the saved values, or start a new run without this "
            "state."
        )
    epoch = _number(state, "epoch", 1 << 62)
    position = _number(state, "position", job.num_windows)
    num_given = _number(state, _NUM_GIVEN, position) if _NUM_GIVEN in state else None if position else 0
    return Place(epoch, position, num_given)


def _number(state: Mapping[str, Any], name: str, most: int) -> int:
    value = state[name]
    with suppress(TypeError):  # an index is also what numpy and torch made of an integer in between
        if 0 <= (number := operator.index(value)) <= most:
            return number
    raise StateError(f"state: {name} is {value!r}, wanted 0 to {most}. Load what state_dict() returned.")


def _differences(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """What differs, in words; of mixtures only the datasets that do."""
    numbers = [len(each["dataset"]) if isinstance(each.get("dataset"), list) else 0 for each in (saved, ours)]
    if numbers[0] != numbers[1]:  # then everything else is of another length, too
        texts = [
            f"a mixture of {number:,}" if number else repr(each.get("dataset"))
            for number, each in zip(numbers, (saved, ours), strict=True)
        ]
        yield f"dataset is {texts[0]}, this stream has {texts[1]}"
        return
    for name, value in ours.items():
        was = saved.get(name)
        pairs = [(name, was, value)]
        if isinstance(was, list) and isinstance(value, list) and len(was) == len(value):
            pairs = [(f"{name}[{number}]", *pair) for number, pair in enumerate(zip(was, value, strict=True))]
        pairs = [pair for pair in pairs if pair[1] != pair[2]]
        for where, theirs, own in pairs[:_MOST_DIFFERENCES]:
            yield f"{where} is {theirs!r}, this stream has {own!r}"
        if len(pairs) > _MOST_DIFFERENCES:
            yield f"and {len(pairs) - _MOST_DIFFERENCES} more of {name}"


def _short(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What is saved of a mixture of many: the window of all its datasets once, and plans by fewer digits."""
    short = dict(identity)
    windows, plans = identity.get("window"), identity.get("plans")
    if isinstance(windows, list) and len(set(windows)) == 1:
        short["window"] = windows[0]
    if isinstance(plans, list):
        short["plans"] = [str(plan)[:_PLAN_DIGITS] for plan in plans]
    return short
