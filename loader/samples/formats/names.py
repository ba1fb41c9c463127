"""The formats by name, and what the argument `sample_format` of a stream means."""

from collections.abc import Callable
from typing import Any

from epistream.errors import OptionError
from epistream.hints import did_you_mean
from epistream.loader.samples.formats.act import ActFormat
from epistream.loader.samples.formats.base import Batch, SampleFormat
from epistream.loader.samples.formats.diffusion_policy import DiffusionPolicyFormat
from epistream.loader.samples.formats.ilstudio import IlStudioFormat
from epistream.loader.samples.formats.lerobot import LeRobotFormat

FORMATS: dict[str, Callable[[], SampleFormat]] = {
    "act": ActFormat,
    "diffusion_policy": DiffusionPolicyFormat,
    "lerobot": LeRobotFormat,
    "ilstudio": IlStudioFormat,
}

WantedFormat = str | SampleFormat | Callable[[Batch], Any]


def format_for(wanted: WantedFormat | None) -> SampleFormat | Callable[[Batch], Any] | None:
    """A format for its name; formats, functions and None as they are.

    Raises:
        OptionError: an unknown name; the message gives the nearest one.
    """
    if isinstance(wanted, str):
        if wanted not in FORMATS:
            hint = did_you_mean(wanted, FORMATS, "Or give a function.")
            raise OptionError(f"sample_format: {wanted!r}, wanted one of {', '.join(FORMATS)}. {hint}")
        return FORMATS[wanted]()
    return wanted
