"""The batches of LeRobot's data sets: flat keys, pictures as floats with channels first, a mask per key."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

from epistream.errors import OptionError
from epistream.loader.order.window import Window
from epistream.loader.samples.formats.base import Batch, FormatContext, Padding, SampleFormat, one_step
from epistream.loader.samples.formats.pictures import channels_first, scaled
from epistream.options import check
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.opened_dataset import Dataset

# float64 comes as float32 already, but where a stream was told to keep it.
_WIDER = {torch.float16: torch.float32}
_WIDER |= dict.fromkeys((torch.uint8, torch.int8, torch.int16, torch.int32), torch.int64)


@dataclass(frozen=True)
class LeRobotFormat(SampleFormat):
    """A flat dict, as ``LeRobotDataset`` and its data loader give it.

    | key                                       | type                                                     |
    | ----------------------------------------- | -------------------------------------------------------- |
    | ``observation.images.<camera>``           | float32 (B, C, H, W) in [0, 1]                           |
    | ``observation.state``, ``action``, others | (B, D); float32, int64 or bool                           |
    | ``timestamp``                             | float32 (B,), seconds since the episode began            |
    | ``frame_index``                           | int64 (B,), step of the anchor                           |
    | ``episode_index``, ``index``              | int64 (B,), episode; step counted over the dataset       |
    | ``task_index``, ``task``                  | int64 (B,); list of B str                                |

    A feature with `delta_timestamps` (or several offsets of its own) has a step axis after B and a
    ``<key>_is_pad`` bool (B, n), True where padded; one without has neither. ``is_repeat`` is added with
    ``remainder="pad"``.

    Args:
        images: ``"uint8"`` leaves pictures as bytes, channels first, without a copy: scale them on the device.
        padding: edges repeated, and one mask a key.
    """

    images: Literal["float32", "uint8"] = "float32"
    padding: Padding = field(default_factory=lambda: Padding("edge", "{key}_is_pad"))

    def __post_init__(self) -> None:
        check(self, "LeRobotFormat ")

    def select(self, available: Mapping[str, Feature]) -> list[str]:
        """Every feature."""
        return list(available)

    def default_window(self, dataset: Dataset) -> Window:
        """The anchor alone."""
        return Window()

    def check(self, context: FormatContext) -> None:
        """The rate is known, without which there are no timestamps."""
        if _fps(context) is None:
            raise OptionError(
                "sample_format 'lerobot': the dataset does not say its rate, wanted steps per second for 'timestamp'. "
                "Pack again with --fps."
            )

    def __call__(self, batch: Batch, context: FormatContext) -> Batch:
        """The batch as the dict above."""
        sample: Batch = {}
        for name, feature in context.features.items():
            has_axis = name in context.window.overrides or context.window.offsets(name) != (0,)
            values = batch[name] if has_axis else one_step(batch[name])
            if feature.kind == "frames":
                values = scaled(values, context.recycler) if self.images == "float32" else channels_first(values)
            elif values.dtype in _WIDER:  # LeRobot makes tensors of Python's numbers
                values = values.to(_WIDER[values.dtype])
            sample[name] = values
            if has_axis and self.padding.mask is not None:
                sample[self.padding.key(name)] = self.padding.of(batch[f"{name}_is_pad"])
        step = batch["step_index"]
        sample |= {
            "timestamp": (step.to(torch.float64) / (_fps(context) or 1.0)).to(torch.float32),
            "frame_index": step,
            "episode_index": batch["episode_index"],
            "index": context.first_step[batch["episode_index"]] + step,
            "task_index": batch["task_index"],
            "task": batch["task"],
        }
        return sample | ({"is_repeat": batch["is_repeat"]} if "is_repeat" in batch else {})


def _fps(context: FormatContext) -> float | None:
    rates = (feature.fps for feature in context.dataset.features.values())
    return next((rate for rate in rates if rate), None)
