"""What a sample format is, and what the four of them share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from epistream.errors import OptionError
from epistream.lazy import lazy
from epistream.loader.order.window import Pad, Window
from epistream.loader.samples.formats.recycler import Recycler
from epistream.options import check
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.units import picture_size

Batch = dict[str, Any]
MaskTrue = Literal["pad", "valid"]


@dataclass(frozen=True)
class Padding:
    """What stands where the episode does not reach, and how a batch says so.

    Args:
        value: what padded entries hold.
        mask: key of the mask; ``{key}`` in it becomes the feature's key. None leaves masks out.
        mask_true: what True means in it (octo: ``"valid"``, the others ``"pad"``).

    Raises:
        OptionError: an unknown value or polarity.
    """

    value: Pad
    mask: str | None
    mask_true: MaskTrue = "pad"

    def __post_init__(self) -> None:
        check(self, "Padding ")

    def of(self, is_pad: Tensor) -> Tensor:
        """The mask with the polarity asked for; the stream's own array where that is the one it has."""
        return is_pad if self.mask_true == "pad" else ~is_pad

    def key(self, name: str) -> str:
        """The key of the mask that belongs to a feature under the key `name`."""
        return (self.mask or "").replace("{key}", name)


@dataclass(frozen=True)
class FormatContext:
    """What a format may know of the stream whose batches it gets."""

    dataset: Dataset
    features: Mapping[str, Feature]
    window: Window
    recycler: Recycler = field(default_factory=Recycler, repr=False)

    @property
    def cameras(self) -> list[str]:
        """Streamed features that are frames."""
        return cameras_of(self.features)

    @lazy
    def first_step(self) -> Tensor:
        """(E,) steps of the dataset before each episode, int64."""
        length = self.dataset.episode_length
        return torch.from_numpy(np.cumsum(length, dtype=np.int64) - length)


class SampleFormat(ABC):
    """Turns whole batches into what another code base's data loader yields.

    A format has no state: it is an option, and pickles. `EpisodeStream` asks it for the features and the window
    that it needs, lets it check them, and calls it with every batch.
    """

    padding: Padding
    marks_repeats: bool = True  # its batches say which of their windows are repeats, where there can be any

    @abstractmethod
    def select(self, available: Mapping[str, Feature]) -> list[str]:
        """The features to stream when the user names none."""

    @abstractmethod
    def default_window(self, dataset: Dataset) -> Window:
        """The window to read when the user gives none."""

    @abstractmethod
    def check(self, context: FormatContext) -> None:
        """Raise OptionError if batches of such features and windows cannot be brought into this format."""

    @abstractmethod
    def __call__(self, batch: Batch, context: FormatContext) -> Any:
        """The batch in this format; tensors share its memory wherever nothing has to be computed."""

    def window(self, window: Window | None, dataset: Dataset) -> Window:
        """The window to read: the user's, or the default, with the pad value of this format."""
        return replace(window or self.default_window(dataset), pad=self.padding.value)


def cameras_of(available: Mapping[str, Feature]) -> list[str]:
    """The cameras among `available`, in their order."""
    return [name for name, feature in available.items() if feature.kind == "frames"]


def one_step(values: Tensor) -> Tensor:
    """(B, 1, ...) as (B, ...), a view."""
    return values[:, 0]


def joined(batch: Batch, names: Sequence[str]) -> Tensor:
    """Features side by side in the last axis: the one itself, or a copy of several."""
    return batch[names[0]] if len(names) == 1 else torch.cat([batch[name] for name in names], dim=-1)


def as_tuple(names: str | Sequence[str]) -> tuple[str, ...]:
    """One name or several as a tuple."""
    return (names,) if isinstance(names, str) else tuple(names)


def check_features(what: str, names: Sequence[str], context: FormatContext) -> None:
    """Raise OptionError unless all of `names` are streamed arrays with one axis, read at the same offsets."""
    features, window = context.features, context.window
    vectors = {n: f for n, f in features.items() if f.kind == "array" and len(f.shape) == 1}
    missing = [name for name in names if name not in vectors]
    if missing or not names:
        raise OptionError(
            f"{what}: {missing or 'an empty list'} not among the streamed features with one axis {sorted(vectors)}. "
            "Say which stand for it, for example IlStudioFormat(state=(...)), and stream them."
        )
    if len({window.offsets(name) for name in names}) > 1:
        raise OptionError(f"{what}: {list(names)} are read at different offsets, wanted the same for all.")


def check_cameras(what: str, context: FormatContext) -> None:
    """Raise OptionError unless there are cameras, all of one shape and dtype, each read at the anchor alone."""
    cameras = context.cameras
    kinds = {(context.features[name].shape, context.features[name].dtype) for name in cameras}
    if len(kinds) != 1:
        found = ", ".join(f"{name} {picture_size(context.features[name].shape)}" for name in cameras) or "no cameras"
        raise OptionError(
            f"{what}: {found}, wanted cameras of one size, which it stacks. Choose some with features=[...], or "
            "resize when packing (--image-size)."
        )
    check_single(what, cameras, context)


def check_single(what: str, names: Sequence[str], context: FormatContext) -> None:
    """Raise OptionError unless each of `names` is read at one offset."""
    for name in names:
        offsets = context.window.offsets(name)
        if len(offsets) != 1:
            raise OptionError(f"{what}: {name} is read at the offsets {list(offsets)[:8]}, wanted a single one.")
