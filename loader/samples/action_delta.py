"""Actions relative to the state, under two names for the two things that people call delta."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from epistream.errors import OptionError
from epistream.loader.order.window import Window
from epistream.sharding.format.features import Feature
from epistream.sharding.format.statistics import merge_all, summarize, to_plain

DeltaKind = Literal["delta_step", "delta_first"]


@dataclass(frozen=True)
class ActionDelta:
    """Subtract the state from the action chunk.

    | kind          | action at offset i becomes        | who calls it delta |
    | ------------- | --------------------------------- | ------------------ |
    | `delta_step`  | ``action[t + i] - state[t + i]``  | IL-Studio          |
    | `delta_first` | ``action[t + i] - state[t]``      | openpi             |

    Padded actions: with ``pad="edge"`` the repeated action minus the repeated state, with ``pad="zero"`` zero.

    Args:
        kind: which of the two.
        action: the feature that changes.
        state: what is subtracted; its first dimensions belong to those of the action.
        dims: dimensions that become relative, all by default; leave grippers out that are commanded absolutely.

    Raises:
        OptionError: an unknown kind, or dimensions that are repeated or negative.
    """

    kind: DeltaKind
    action: str = "action"
    state: str = "observation.state"
    dims: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(DeltaKind):
            raise OptionError(f"action_delta: {self.kind!r}, wanted one of {', '.join(get_args(DeltaKind))}.")
        if self.dims is not None:
            object.__setattr__(self, "dims", tuple(self.dims))
            if len(set(self.dims)) < len(self.dims) or min(self.dims, default=0) < 0:
                raise OptionError(f"action_delta: dims {self.dims}, wanted each dimension once, from 0.")

    def check(self, features: Mapping[str, Feature]) -> None:
        """Raise OptionError if these features have no such action and state, or of shapes that do not fit."""
        for name in (self.action, self.state):
            if name not in features or features[name].kind != "array" or len(features[name].shape) != 1:
                raise OptionError(
                    f"action_delta: {name!r} is no streamed feature with one axis; there are {sorted(features)}. "
                    "Give ActionDelta(kind, action=..., state=...)."
                )
        num_actions, num_states = features[self.action].shape[0], features[self.state].shape[0]
        if self.dims is None and num_actions != num_states:
            raise OptionError(
                f"action_delta: {self.action} has {num_actions} dimensions, {self.state} {num_states}, wanted as many. "
                "Say which become relative: ActionDelta(kind, dims=(0, 1, ...))."
            )
        if self.dims is not None and max(self.dims, default=0) >= min(num_actions, num_states):
            raise OptionError(
                f"action_delta: dims {self.dims} of {num_actions} action and {num_states} state dimensions."
            )

    def read(self, window: Window) -> Window:
        """The window with which the state is also read where it is subtracted."""
        needed = window.offsets(self.action) if self.kind == "delta_step" else (0,)
        union = sorted({*window.offsets(self.state), *needed})
        return replace(window, overrides={**window.overrides, self.state: union})

    def apply(self, batch: dict[str, Any], window: Window) -> None:
        """Change the action of a batch in place, and leave of the state the steps that `window` asks for.

        Args:
            batch: read with ``self.read(window)``.
            window: without what `read` added.
        """
        have = self.read(window).offsets(self.state)
        state, action = batch[self.state], batch[self.action]
        dims = range(action.shape[-1]) if self.dims is None else self.dims
        steps = window.offsets(self.action) if self.kind == "delta_step" else (0,)
        subtrahend = _take(state, have, steps)
        if list(dims) == list(range(action.shape[-1])):
            action.sub_(subtrahend)
        else:
            columns = torch.tensor(dims, dtype=torch.int64)
            action[..., columns] -= subtrahend[..., columns]
        if window.pad == "zero":
            action[batch[f"{self.action}_is_pad"]] = 0
        for key in (self.state, f"{self.state}_is_pad"):
            batch[key] = _take(batch[key], have, window.offsets(self.state))


def _take(values: Tensor, have: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor:
    """The entries of axis 1 that are the offsets `wanted` of `have`: a view where they are neighbours."""
    first = have.index(wanted[0])
    if have[first : first + len(wanted)] == wanted:
        return values[:, first : first + len(wanted)]
    return values[:, [have.index(offset) for offset in wanted]]


def delta_statistics(stream: Iterable[dict[str, Any]], action: str = "action") -> dict[str, dict[str, Any]]:
    """Statistics of an action as a stream gives it, for a `Normalizer`: those of the manifest are of absolute actions.

    Args:
        stream: an `EpisodeStream` with `action_delta` and no `normalize`; stream the state and the action only.
        action: the feature.

    Returns:
        ``{action: {count, mean, std, min, max, quantiles}}`` over all entries of the windows that are not padded.

    Raises:
        OptionError: the stream gave no batch.
    """
    merged = merge_all({action: summarize(batch[action][~batch[f"{action}_is_pad"]].numpy())} for batch in stream)
    if not merged:
        raise OptionError("delta_statistics: a stream without batches, wanted at least one. Use a smaller batch_size.")
    return {action: to_plain(merged[action])}
