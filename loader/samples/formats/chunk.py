"""What the formats with one observation and a chunk of actions share: ACT's and IL-Studio's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from epistream.loader.samples.formats.base import (
    Batch,
    FormatContext,
    SampleFormat,
    as_tuple,
    cameras_of,
    check_cameras,
    check_features,
    check_single,
    joined,
    one_step,
)
from epistream.sharding.format.features import Feature


@dataclass(frozen=True)
class ChunkFormat(SampleFormat):
    """Cameras of one size and a state at the anchor, and a chunk of actions.

    Args:
        state: feature, or features to join, for the state.
        action: likewise for the action.
    """

    name: ClassVar[str]

    state: str | Sequence[str] = "observation.state"
    action: str | Sequence[str] = "action"

    def select(self, available: Mapping[str, Feature]) -> list[str]:
        """Cameras, state and action."""
        return [*cameras_of(available), *as_tuple(self.state), *as_tuple(self.action)]

    def check(self, context: FormatContext) -> None:
        """Cameras of one size, state at one step, actions at the same steps."""
        what = f"sample_format {self.name!r}"
        check_cameras(what, context)
        check_features(f"{what}, state", as_tuple(self.state), context)
        check_single(what, as_tuple(self.state), context)
        check_features(f"{what}, action", as_tuple(self.action), context)

    def state_of(self, batch: Batch) -> Tensor:
        """The state (B, D), of all its features."""
        return one_step(joined(batch, as_tuple(self.state)))

    def chunk_of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Actions (B, chunk, A), and their mask (B, chunk), True where padded."""
        names = as_tuple(self.action)
        return joined(batch, names), batch[f"{names[0]}_is_pad"]
