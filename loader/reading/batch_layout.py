"""How a batch lies in one block of memory: which array, which dtype, which shape, at which byte."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.loader.order.window import Window
from epistream.sharding.format.features import Feature

# A cache line; also enough for every dtype and for the vector loads of the JPEG decoder.
_ALIGNMENT = 64


@dataclass(frozen=True)
class BatchArray:
    """One array of a batch. `offset` is its first byte in the block; shape starts with the batch axis."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class BatchLayout:
    """The arrays of one batch, one after the other at multiples of 64 bytes."""

    fields: tuple[BatchArray, ...]
    num_bytes: int

    @classmethod
    def plan(
        cls, features: Mapping[str, Feature], window: Window, batch_size: int, dtypes: Mapping[str, str] | None = None
    ) -> "BatchLayout":
        """Lay out a batch of `batch_size` windows of `features`, those named in `dtypes` in these."""
        shapes: list[tuple[str, np.dtype[Any], tuple[int, ...]]] = []
        for name, feature in features.items():
            num_steps = len(window.offsets(name))
            dtype = np.dtype((dtypes or {}).get(name, feature.dtype))
            if dtype == np.float64 and name not in (dtypes or {}):  # stored exactly, but yielded as float32
                dtype = np.dtype(np.float32)
            shapes.append((name, dtype, (batch_size, num_steps, *feature.shape)))
            shapes.append((f"{name}_is_pad", np.dtype(np.bool_), (batch_size, num_steps)))
        shapes += [(key, np.dtype(np.int64), (batch_size,)) for key in ("episode_index", "step_index", "task_index")]
        shapes.append(("is_repeat", np.dtype(np.bool_), (batch_size,)))
        return cls._of(shapes)

    @classmethod
    def _of(cls, shapes: Iterable[tuple[str, np.dtype[Any], tuple[int, ...]]]) -> "BatchLayout":
        fields: list[BatchArray] = []
        offset = 0
        for name, dtype, shape in shapes:
            fields.append(BatchArray(name, dtype, shape, offset))
            offset += -(-math.prod(shape) * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        return cls(tuple(fields), offset)

    def with_field(self, name: str, dtype: np.dtype[Any]) -> "BatchLayout":
        """The same with one more array of one value per window."""
        shapes = [(field.name, field.dtype, field.shape) for field in self.fields]
        return self._of([*shapes, (name, dtype, self.fields[0].shape[:1])])

    def times(self, num_batches: int) -> "BatchLayout":
        """The layout of so many batches one after the other, as one large batch."""
        return self._of(
            (field.name, field.dtype, (field.shape[0] * num_batches, *field.shape[1:])) for field in self.fields
        )

    def views(self, block: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        """The arrays inside `block` (at least `num_bytes` uint8, contiguous). They share its memory."""
        return {field.name: np.ndarray(field.shape, field.dtype, block, field.offset) for field in self.fields}

    def allocate(self) -> dict[str, NDArray[Any]]:
        """The arrays in fresh memory of their own."""
        return self.views(np.empty(self.num_bytes, dtype=np.uint8))
