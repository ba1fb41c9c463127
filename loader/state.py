"""What is saved to resume a stream, and the check that it belongs to the stream that loads it."""

from collections.abc import Mapping
from typing import Any

from epistream.errors import StateError
from epistream.loader.reading.job import Job

STATE_VERSION = 1


def make_state(job: Job, epoch: int, position: int) -> dict[str, Any]:
    """The state of a job that has consumed `position` windows of `epoch`, over all ranks."""
    return {"version": STATE_VERSION, "epoch": epoch, "position": position, **job.identity}


def check_state(job: Job, state: Mapping[str, Any]) -> tuple[int, int]:
    """Epoch and position of a saved state.

    World size, workers and batch size may differ from the run that saved it; what decides the order may not.

    Raises:
        StateError: not a state of ours, of another version, or of a stream with another order; names both values.
    """
    if not isinstance(state, Mapping) or not {"version", "epoch", "position"} <= set(state):
        raise StateError(f"state: {state!r:.200}, wanted what state_dict() returned.")
    if state["version"] != STATE_VERSION:
        raise StateError(
            f"state: version {state['version']}, this release reads version {STATE_VERSION}. "
            "Resume with the release that saved it."
        )
    ours = job.identity
    different = [
        f"{name} is {state.get(name)!r}, this stream has {ours[name]!r}"
        for name in ours
        if ours[name] != state.get(name)
    ]
    if different:
        raise StateError(
            f"state: {'; '.join(different)}. Make the stream with the saved values, or start a new run without this "
            "state."
        )
    epoch, position = int(state["epoch"]), int(state["position"])
    if epoch < 0 or not 0 <= position <= job.num_windows:
        raise StateError(f"state: epoch {epoch}, position {position} of {job.num_windows} windows.")
    return epoch, position
