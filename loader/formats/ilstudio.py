"""The batches of IL-Studio's data sets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from epistream.loader.formats.base import (
    Batch,
    FormatContext,
    Padding,
    SampleFormat,
    as_tuple,
    cameras_of,
    check_cameras,
    check_features,
    check_single,
    joined,
    one_step,
)
from epistream.loader.formats.pictures import stacked
from epistream.loader.window import Window
from epistream.sharding.dataset import Dataset
from epistream.sharding.features import Feature


@dataclass(frozen=True)
class IlStudioFormat(SampleFormat):
    """A flat dict, as IL-Studio's ``EpisodicDataset`` and its data loader give it.

    | key        | type                                                                     |
    | ---------- | ------------------------------------------------------------------------ |
    | image      | uint8 (B, K, C, H, W), K cameras; a view of the batch                    |
    | state      | float32 (B, D)                                                           |
    | action     | float32 (B, chunk, A), zeros where padded                                |
    | is_pad     | bool (B, chunk), True where padded                                       |
    | raw_lang   | list of B str                                                            |
    | reasoning  | list of B str, empty: recorded reasoning is no feature                   |
    | timestamp  | int64 (B,), the step of the anchor                                       |
    | episode_id | int64 (B,)                                                               |

    ``is_repeat`` is added with ``remainder="pad"``.

    Args:
        state: feature, or features to join, for state.
        action: likewise for action.
        chunk_size: length of the chunk when the user gives no window.
        padding: zeros, and the mask's name and polarity.
    """

    state: str | Sequence[str] = "observation.state"
    action: str | Sequence[str] = "action"
    chunk_size: int = 16
    padding: Padding = field(default_factory=lambda: Padding("zero", "is_pad"))

    def select(self, available: Mapping[str, Feature]) -> list[str]:
        """Cameras, state and action."""
        return [*cameras_of(available), *as_tuple(self.state), *as_tuple(self.action)]

    def default_window(self, dataset: Dataset) -> Window:
        """The anchor, and `chunk_size` actions."""
        offsets = range(self.chunk_size)
        return Window(action=offsets, overrides=dict.fromkeys(as_tuple(self.action), offsets))

    def check(self, context: FormatContext) -> None:
        """Cameras of one size, state at one step."""
        check_cameras("sample_format 'ilstudio'", context)
        check_features("sample_format 'ilstudio', state", as_tuple(self.state), context)
        check_single("sample_format 'ilstudio'", as_tuple(self.state), context)
        check_features("sample_format 'ilstudio', action", as_tuple(self.action), context)

    def __call__(self, batch: Batch, context: FormatContext) -> Batch:
        """The batch as the dict above."""
        actions = as_tuple(self.action)
        sample: Batch = {
            "image": stacked([one_step(batch[name]) for name in context.cameras]),
            "state": one_step(joined(batch, as_tuple(self.state))),
            "action": joined(batch, actions),
        }
        if self.padding.mask is not None:
            sample[self.padding.key("action")] = self.padding.of(batch[f"{actions[0]}_is_pad"])
        sample |= {
            "raw_lang": batch["task"],
            "reasoning": [""] * len(batch["task"]),
            "timestamp": batch["step_index"],
            "episode_id": batch["episode_index"],
        }
        return sample | ({"is_repeat": batch["is_repeat"]} if "is_repeat" in batch else {})
