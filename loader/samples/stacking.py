"""Batches that a DataLoader would stack once more: noticed when it begins to iterate, and refused."""

import sys
from types import FrameType
from typing import Any

from torch.utils.data import default_collate

from epistream.errors import OptionError

# What hands elements on as they are, between a DataLoader and its data set.
_HANDS_ON = {"torch.utils.data.dataset", "accelerate.data_loader"}
# Collators of these stack what they get; whoever writes one of his own knows what an element is.
_STACKS = ("torch.utils.data.", "transformers.data.")


def refuse_stacking(url: str, batch_size: int, frame: FrameType | None) -> None:
    """Refuse a DataLoader with automatic batching whose collator stacks: each element is a whole batch already.

    There is no call of torch's that tells a data set so; what iterates it is looked for among the callers. A
    ``collate_fn`` of the user's is called, whatever the DataLoader's batch size: it may join whole batches, or take the
    first one.

    Args:
        url: what is read.
        batch_size: windows of each batch.
        frame: of who asks for an iterator.

    Raises:
        OptionError: it would stack.
    """
    while frame is not None and frame.f_globals.get("__name__") in _HANDS_ON:
        frame = frame.f_back
    if frame is None or frame.f_globals.get("__name__") != "torch.utils.data._utils.fetch":
        return
    fetcher = frame.f_locals.get("self")
    if getattr(fetcher, "auto_collation", False) and _stacks(getattr(fetcher, "collate_fn", None)):
        raise OptionError(
            f"DataLoader: {url:.200}: its batch_size stacks what is a batch of {batch_size} windows already, wanted "
            "batch_size=None. Make it DataLoader(stream, batch_size=None), or take epistream.StreamingLoader(stream); "
            "the stream's own batch_size says how many windows a batch has."
        )


def _stacks(collate: Any) -> bool:
    for _ in range(4):  # what trainers put around a collator
        inner = getattr(collate, "_collate", None) or getattr(collate, "data_collator", None)
        if inner is None:
            break
        collate = inner
    module = getattr(collate, "__module__", None) or ""
    return collate is default_collate or module.startswith(_STACKS)


def caller() -> FrameType | None:
    """Who called the function that asks."""
    return sys._getframe(2)
