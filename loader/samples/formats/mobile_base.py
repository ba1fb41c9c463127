"""The actions of a mobile base beside those of the arms, as ACT++ joins them: smoothed over five steps.

Source: ACT++'s data set convolves the whole episode's base actions with a box of five steps and zeros beyond its ends.
"""

from dataclasses import replace

import torch
from torch import Tensor

from epistream.errors import OptionError
from epistream.loader.order.window import Window

# Steps on either side of one that its smoothed value is the mean of.
_REACH = 2
# What ACT++ fills in for recordings without a base: its linear and its angular velocity.
_WIDTH = 2


def widened(window: Window, base: str, action: str) -> Window:
    """`window` with what smoothing reads of the feature `base` beyond the actions' steps.

    Raises:
        OptionError: the actions' steps do not follow each other.
    """
    offsets = window.offsets(action)
    if offsets != tuple(range(offsets[0], offsets[-1] + 1)):
        raise OptionError(
            f"base_action: actions at the offsets {list(offsets)[:8]}, wanted steps that follow each other, since "
            "the base's are smoothed."
        )
    return replace(window, overrides={**window.overrides, base: range(offsets[0] - _REACH, offsets[-1] + _REACH + 1)})


def smoothed(values: Tensor, is_pad: Tensor) -> Tensor:
    """The base's actions at the steps of the arms' actions.

    Entries that are padded stay what they are, so that they are zeros, or what normalisation made of zeros.

    Args:
        values: (B, n + 4, 2), read with a window of `widened`, zeros where padded.
        is_pad: (B, n) of the arms' actions.
    """
    windows = values.to(torch.float64).unfold(1, 2 * _REACH + 1, 1)  # (B, n, 2, 5)
    return torch.where(is_pad[..., None], values[:, _REACH:-_REACH], windows.mean(dim=-1).to(values.dtype))


def beside(action: Tensor, base: Tensor | None) -> Tensor:
    """`action` (B, n, A) with those of the base behind, or zeros where there is none."""
    if base is None:
        base = action.new_zeros((*action.shape[:2], _WIDTH))
    return torch.cat([action, base.to(action.dtype)], dim=-1)
