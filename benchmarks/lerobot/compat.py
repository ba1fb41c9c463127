"""Lets LeRobot import beside the CPU build of torch, and read videos without FFmpeg on the machine."""

import importlib.util
import os
import sys
from pathlib import Path

import torch

_SEARCHED = "LD_LIBRARY_PATH"
_ARGUMENTS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[torch.library.Library] = []


def prepare() -> None:
    """To be called before LeRobot is imported; starts the program again if libraries must be found first."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    folder = _link_ffmpeg()
    searched = os.environ.get(_SEARCHED, "").split(":")
    if str(folder) not in searched:
        # The loader reads its path once, when a process starts.
        os.environ[_SEARCHED] = ":".join([str(folder), *filter(None, searched)])
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    _define_operators()


def _link_ffmpeg() -> Path:
    """A folder that has PyAV's own FFmpeg under the names that torchcodec looks for."""
    spec = importlib.util.find_spec("av")
    if spec is None or spec.origin is None:
        raise ImportError("PyAV is missing. Run: pip install --no-deps -r requirements-v30.txt")
    folder = Path(sys.prefix) / "ffmpeg"
    folder.mkdir(exist_ok=True)
    for library in (Path(spec.origin).parent.parent / "av.libs").iterdir():
        # libavcodec-7ee0753d.so.61.19.101 is wanted as libavcodec.so.61, and by its siblings under its own name.
        stem, _, version = library.name.partition(".so.")
        plain = f"{stem.rpartition('-')[0]}.so.{version.partition('.')[0]}"
        for name in (library.name, plain):
            if not (folder / name).exists():
                (folder / name).symlink_to(library)
    return folder


def _define_operators() -> None:
    """Those that torchvision registers shapes for, and whose library needs CUDA; LeRobot calls none of them."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(operator + _ARGUMENTS)
        _kept.append(library)
