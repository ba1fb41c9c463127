"""The batches of ACT and ACT++: a tuple, pictures as floats, zeros after the end of the episode."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from epistream.errors import OptionError
from epistream.loader.order.window import Window
from epistream.loader.samples.formats.base import Batch, FormatContext, Padding, as_tuple, one_step
from epistream.loader.samples.formats.chunk import ChunkFormat
from epistream.loader.samples.formats.pictures import stacked_scaled
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.opened_dataset import Dataset

# Steps on either side of one that a base's smoothed value is the mean of.
_REACH = 2
# What ACT++ fills in for recordings without a base: its linear and its angular velocity.
_BASE_WIDTH = 2


@dataclass(frozen=True)
class ActFormat(ChunkFormat):
    """``(image, qpos, action, is_pad)`` as ACT's ``EpisodicDataset`` and its data loader give them.

    | item   | type                                          |
    | ------ | --------------------------------------------- |
    | image  | float32 (B, K, C, H, W) in [0, 1], K cameras  |
    | qpos   | float32 (B, D)                                |
    | action | float32 (B, chunk, A), zeros where padded     |
    | is_pad | bool (B, chunk), True where padded            |

    Without a window of the user's the chunk is as long as the longest episode, which is ACT's; give
    ``Window(action=range(chunk_size))`` for ACT++'s. Its normalisation is ``normalize`` of the stream.

    Args:
        state: feature, or features to join, for qpos.
        action: likewise for action.
        chunk_size: length of the chunk when the user gives no window; None is the longest episode.
        lag_one_step: read actions from ``max(0, t - 1)`` on, as ACT does with real robots (its files say
            ``sim=False``) to make up for the recorder's delay. The chunk then is one step shorter than the window's.
        padding: zeros, and a mask that is True where padded. The mask has no name in a tuple.
        base_action: feature of a mobile base's actions, put behind the others as ACT++ does: the mean of five steps,
            with zeros beyond the episode. Where a dataset has none, two zeros stand there, again as in ACT++.
        marks_repeats: a fifth item, bool (B,): True for windows that only fill a batch up. For validation, where
            `WindowMean` takes it: ``mean.add({"is_repeat": is_repeat}, loss=loss)``.
    """

    name: ClassVar[str] = "act"

    chunk_size: int | None = None
    lag_one_step: bool = False
    padding: Padding = field(default_factory=lambda: Padding("zero", "is_pad"))
    base_action: str | None = None
    marks_repeats: bool = False

    def __post_init__(self) -> None:
        if self.base_action in as_tuple(self.action):
            raise OptionError(f"ActFormat: base_action {self.base_action!r} is named as action too.")

    def select(self, available: Mapping[str, Feature]) -> list[str]:
        """Cameras, state and actions."""
        base = [self.base_action] if self.base_action is not None and self.base_action in available else []
        return [*super().select(available), *base]

    def default_window(self, dataset: Dataset) -> Window:
        """The anchor, and the chunk."""
        length = self.chunk_size or int(dataset.episode_length.max())
        lag = int(self.lag_one_step)
        offsets = range(-lag, length)
        return Window(action=offsets, overrides=dict.fromkeys(as_tuple(self.action), offsets))

    def window(self, window: Window | None, dataset: Dataset) -> Window:
        """The window of every format, with two steps more on either side of a mobile base's actions."""
        chosen = super().window(window, dataset)
        if self.base_action not in dataset.features or self.base_action is None:
            return chosen
        offsets = chosen.offsets(as_tuple(self.action)[0])
        if offsets != tuple(range(offsets[0], offsets[-1] + 1)):
            raise OptionError(
                f"base_action: actions at the offsets {list(offsets)[:8]}, wanted steps that follow each other, since "
                "the base's are smoothed."
            )
        reached = range(offsets[0] - _REACH, offsets[-1] + _REACH + 1)
        return replace(chosen, overrides={**chosen.overrides, self.base_action: reached})

    def check(self, context: FormatContext) -> None:
        """Cameras of one size, state at one step; actions from the step before the anchor on if they lag."""
        super().check(context)
        offsets = context.window.offsets(as_tuple(self.action)[0])
        if self.lag_one_step and (offsets != tuple(range(-1, len(offsets) - 1)) or len(offsets) < 2):
            raise OptionError(
                f"sample_format 'act', lag_one_step: actions at the offsets {list(offsets)[:8]}, wanted "
                "range(-1, chunk_size), of which the first or the last is left out."
            )

    def __call__(self, batch: Batch, context: FormatContext) -> tuple[Tensor, ...]:
        """The batch as the tuple above."""
        action, is_pad = self.chunk_of(batch)
        if self.base_action is not None:
            if self.base_action in batch:
                base = _smoothed(batch[self.base_action], is_pad)
            else:
                base = action.new_zeros((*action.shape[:2], _BASE_WIDTH))
            action = torch.cat([action, base.to(action.dtype)], dim=-1)
        if self.lag_one_step:
            at_start = batch["step_index"] == 0
            action, is_pad = _lagged(action, at_start), _lagged(is_pad, at_start)
        image = stacked_scaled([one_step(batch[name]) for name in context.cameras], context.recycler)
        items = (image, self.state_of(batch), action, self.padding.of(is_pad))
        if not self.marks_repeats:
            return items
        return *items, batch.get("is_repeat", torch.zeros(len(action), dtype=torch.bool))


def _smoothed(values: Tensor, is_pad: Tensor) -> Tensor:
    """A mobile base's actions at the steps of the arms' actions.

    Entries that are padded stay what they are, so that they are zeros, or what normalisation made of zeros.

    Source: ACT++'s data set convolves the whole episode's base actions with a box of five steps and zeros beyond its
    ends.

    Args:
        values: (B, n + 4, 2), read two steps more on either side, zeros where padded.
        is_pad: (B, n) of the arms' actions.
    """
    windows = values.to(torch.float64).unfold(1, 2 * _REACH + 1, 1)  # (B, n, 2, 5)
    return torch.where(is_pad[..., None], values[:, _REACH:-_REACH], windows.mean(dim=-1).to(values.dtype))


def _lagged(values: Tensor, at_start: Tensor) -> Tensor:
    """From offsets -1..n to -1..n-1, but 0..n at the start of an episode, where nothing lies before."""
    early, late = values[:, :-1], values[:, 1:]
    if not at_start.any():
        return early
    return torch.where(at_start.view(-1, *[1] * (values.dim() - 1)), late, early)
