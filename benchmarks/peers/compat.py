"""Lets MosaicML Streaming import where only a CUDA build of torchvision is to be had.

It needs Python classes of torchvision, none of its operators; but torchvision registers shapes for operators that its
CUDA library, which cannot be loaded without CUDA, would have defined.
"""

import importlib.util

import torch

_ARGUMENTS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_OPERATORS = (f"nms{_ARGUMENTS}", f"qnms{_ARGUMENTS}")
_kept: list[torch.library.Library] = []


def allow_torchvision() -> None:
    """Define the operators if importing torchvision fails without them."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in _OPERATORS:
            library.define(operator)
        _kept.append(library)
