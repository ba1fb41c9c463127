"""The batches of IL-Studio's data sets."""

from dataclasses import dataclass, field
from typing import ClassVar

from epistream.loader.order.window import Window
from epistream.loader.samples.formats.base import Batch, FormatContext, Padding, as_tuple, one_step
from epistream.loader.samples.formats.chunk import ChunkFormat
from epistream.loader.samples.formats.pictures import stacked
from epistream.sharding.manifest.opened_dataset import Dataset


@dataclass(frozen=True)
class IlStudioFormat(ChunkFormat):
    """A flat dict, as IL-Studio's ``EpisodicDataset`` and its data loader give it.

    | key        | type                                                                     |
    | ---------- | ------------------------------------------------------------------------ |
    | image      | uint8 (B, K, C, H, W), K cameras; a view of the batch                    |
    | state      | float32 (B, D)                                                           |
    | action     | float32 (B, chunk, A), zeros where padded                                |
    | is_pad     | bool (B, chunk), True where padded                                       |
    | raw_lang   | list of B str                                                            |
    | reasoning  | list of B str, empty: texts of steps are no features                     |
    | timestamp  | int64 (B,), the step of the anchor                                       |
    | episode_id | int64 (B,)                                                               |

    ``is_repeat`` is added with ``remainder="pad"``.

    Args:
        state: feature, or features to join, for state.
        action: likewise for action.
        chunk_size: length of the chunk when the user gives no window.
        padding: zeros, and the mask's name and polarity.
    """

    name: ClassVar[str] = "ilstudio"

    chunk_size: int = 16
    padding: Padding = field(default_factory=lambda: Padding("zero", "is_pad"))

    def default_window(self, dataset: Dataset) -> Window:
        """The anchor, and `chunk_size` actions."""
        offsets = range(self.chunk_size)
        return Window(action=offsets, overrides=dict.fromkeys(as_tuple(self.action), offsets))

    def __call__(self, batch: Batch, context: FormatContext) -> Batch:
        """The batch as the dict above."""
        action, is_pad = self.chunk_of(batch)
        sample: Batch = {
            "image": stacked([one_step(batch[name]) for name in context.cameras]),
            "state": self.state_of(batch),
            "action": action,
        }
        if self.padding.mask is not None:
            sample[self.padding.key("action")] = self.padding.of(is_pad)
        sample |= {
            "raw_lang": batch["task"],
            "reasoning": [""] * len(batch["task"]),
            "timestamp": batch["step_index"],
            "episode_id": batch["episode_index"],
        }
        return sample | ({"is_repeat": batch["is_repeat"]} if "is_repeat" in batch else {})
