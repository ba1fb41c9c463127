"""Cheap changes to whole batches: pictures channel-first without a copy, and pictures as floats."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Transform = Callable[[Any], Any]


@dataclass(frozen=True)
class ChannelsFirst:
    """Turns (..., H, W, C) into (..., C, H, W): views of the same memory, torch's ``channels_last`` in spirit.

    Args:
        cameras: keys of the pictures.
    """

    cameras: tuple[str, ...]

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The batch with views in place of its pictures."""
        return {**batch, **{name: batch[name].movedim(-1, -3) for name in self.cameras if name in batch}}


@dataclass(frozen=True)
class ImagesToFloat:
    """Makes float tensors in [0, 1] of pictures of bytes. They are four times as large: best done on the device.

    As ``transform=ImagesToFloat()`` of a stream, or ``on_device=ImagesToFloat()`` of a loader.

    Args:
        dtype: ``torch.float32`` by default; bfloat16 or float16 halve it.
        scale: what 255 becomes.
    """

    dtype: torch.dtype = torch.float32
    scale: float = 1.0

    def __call__(self, batch: Any) -> Any:
        """The batch with every uint8 tensor of at least three axes as floats."""
        return map_tensors(batch, self._convert)

    def _convert(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.dtype != torch.uint8 or tensor.ndim < 3:
            return tensor
        return tensor.to(self.dtype).mul_(self.scale / 255.0)


@dataclass(frozen=True)
class InOrder:
    """Several transforms, one after the other. Picklable if they are."""

    steps: tuple[Transform, ...]

    def __call__(self, batch: Any) -> Any:
        """The batch after all of them."""
        for step in self.steps:
            batch = step(batch)
        return batch


def map_tensors(value: Any, action: Callable[[torch.Tensor], Any]) -> Any:
    """`value` with `action` done to every tensor in dicts, lists and tuples; everything else as it is."""
    if isinstance(value, torch.Tensor):
        return action(value)
    if isinstance(value, dict):
        return type(value)((key, map_tensors(item, action)) for key, item in value.items())
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, action) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, action) for item in value)
    return value
