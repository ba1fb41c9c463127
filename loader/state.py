"""What is saved to resume a stream, and the check that it belongs to the stream that loads it."""

from collections.abc import Mapping
from typing import Any

from epistream.errors import StateError
from epistream.loader.job import ReadJob
from epistream.loader.window import Window

STATE_VERSION = 1


def describe_window(window: Window) -> str:
    """A window in one short line, equal for equal windows."""
    spans = [f"obs {_span(tuple(window.obs))}", f"action {_span(tuple(window.action))}"]
    spans += [f"{name} {_span(tuple(steps))}" for name, steps in sorted(window.overrides.items())]
    spans.append(window.pad + (", complete only" if window.drop_incomplete else ""))
    return ", ".join(spans)


def _span(steps: tuple[int, ...]) -> str:
    if len(steps) > 2 and steps == tuple(range(steps[0], steps[-1] + 1)):
        return f"[{steps[0]}..{steps[-1]}]"
    return str(list(steps))


def identity(job: ReadJob) -> dict[str, Any]:
    """Everything that the order of an epoch is a function of, but the epoch."""
    return {"dataset": job.dataset.fingerprint, "window": describe_window(job.window), **job.plan.describe()}


def make_state(job: ReadJob, epoch: int, position: int) -> dict[str, Any]:
    """The state of a job that has consumed `position` windows of `epoch`, over all ranks."""
    return {"version": STATE_VERSION, "epoch": epoch, "position": position, **identity(job)}


def check_state(job: ReadJob, state: Mapping[str, Any]) -> tuple[int, int]:
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
    ours = identity(job)
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
    if epoch < 0 or not 0 <= position <= job.anchors.num_windows:
        raise StateError(f"state: epoch {epoch}, position {position} of {job.anchors.num_windows} windows.")
    return epoch, position
