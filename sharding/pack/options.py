"""The options of a packing job, checked when they are made."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from epistream.errors import OptionError
from epistream.hints import did_you_mean
from epistream.sharding.format.codecs import CODECS, codec_names
from epistream.sharding.format.features import Channels
from epistream.sharding.layouts.mapping import MappingLayout
from epistream.units import parse_size

_MIN_SHARD_BYTES = 1 << 16
# How the job runs, which no byte of the result depends on.
_RUNNING = ("workers", "resume", "overwrite", "skip_bad")


@dataclass(frozen=True)
class PackOptions:
    """How to pack. The first ones decide the bytes of the result, the last four only how the job runs.

    Args:
        layout: Insist on this layout instead of finding it from the files: its name, or a mapping of your own.
        codec: For cameras that are arrays in the source: ``jpeg``, or ``png`` and ``raw``, which keep every bit.
            None is JPEG, and keeps cameras that are JPEG in the source as they are; naming ``png`` or ``raw``
            decodes those. Depth and other cameras that are not 8-bit colour are PNG or raw in any case.
        quality: Of encoded JPEG, 1 to 100.
        shard_size: Target size of a shard, in bytes or as text such as ``128MiB``.
        cameras: Pack these only; names as in the file or as features. Empty is all.
        drop: Features to leave out; patterns such as ``action_dict.*`` count.
        rename: Pairs (old, new) of features, cameras or paths in the source.
        color_order: Channel order in which JPEG is decoded; None is what each layout's own reader does.
        image_size: (width, height) in pixels to which colour cameras are resized; None keeps the source's.
        fps: Steps per second; None is what the source says.
        val_fraction: Share of the episodes that goes to the split ``val``; None follows the source's masks.
        split_seed: Which ones.
        workers: Processes; 1 is the calling process alone.
        resume: Keep the complete shards of an interrupted job of the same sources and options.
        overwrite: Replace a dataset that is already there.
        skip_bad: Leave out episodes that cannot be packed, and list them, instead of failing.

    Raises:
        OptionError: If any of these cannot work.
    """

    layout: str | MappingLayout | None = None
    codec: str | None = None
    quality: int = 95
    shard_size: int | str = "128MiB"
    cameras: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    color_order: Channels | None = None
    image_size: tuple[int, int] | None = None
    fps: float | None = None
    val_fraction: float | None = None
    split_seed: int = 0
    workers: int = 1
    resume: bool = False
    overwrite: bool = False
    skip_bad: bool = False

    def __post_init__(self) -> None:
        # Lists and maps are accepted where the fields are tuples, so that the options stay hashable.
        for name in ("cameras", "drop"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        pairs = self.rename.items() if isinstance(self.rename, Mapping) else self.rename
        object.__setattr__(self, "rename", tuple((str(old), str(new)) for old, new in pairs))
        if self.image_size is not None:
            object.__setattr__(self, "image_size", tuple(self.image_size))
        problem = _problem(self)
        if problem:
            raise OptionError(problem)

    @property
    def shard_bytes(self) -> int:
        """Target size of a shard."""
        return parse_size(self.shard_size, "shard_size")

    def deciding(self) -> dict[str, Any]:
        """The options that decide the bytes of the result, as JSON can hold them."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _RUNNING}
        values["shard_size"] = self.shard_bytes
        if isinstance(self.layout, MappingLayout):
            values["layout"] = self.layout.plain()
        values["rename"] = [list(pair) for pair in self.rename]
        values["cameras"], values["drop"] = list(self.cameras), list(self.drop)
        values["image_size"] = list(self.image_size) if self.image_size else None
        return values

    def changed(self, **changes: Any) -> "PackOptions":
        """These options with some of them changed.

        Raises:
            OptionError: If a name is unknown; the message gives the nearest one.
        """
        known = [item.name for item in fields(self)]
        for name in changes:
            if name not in known:
                hint = did_you_mean(name, known, f"Known: {', '.join(known)}.")
                raise OptionError(f"option {name!r}: unknown. {hint}")
        return replace(self, **changes)


def _problem(options: PackOptions) -> str | None:
    """The first option that cannot work, or None."""
    shard_bytes = options.shard_bytes
    size = options.image_size
    checks = (
        (options.codec in (None, *CODECS), f"codec: {options.codec!r}, wanted {codec_names()}."),
        (_is_int(options.quality, 1, 100), f"quality: {options.quality!r}, wanted 1 to 100."),
        (
            _MIN_SHARD_BYTES <= shard_bytes <= 1 << 39,
            f"shard_size: {shard_bytes:,} bytes, wanted 64 KiB to 512 GiB.",
        ),
        (options.color_order in (None, "rgb", "bgr"), f"color_order: {options.color_order!r}, wanted rgb or bgr."),
        (
            size is None or (len(size) == 2 and all(_is_int(side, 1, 16_384) for side in size)),
            f"image_size: {size!r}, wanted (width, height) in pixels, for example 320x240.",
        ),
        (options.fps is None or 0 < options.fps < 1e6, f"fps: {options.fps!r}, wanted a positive rate in Hz."),
        (
            options.val_fraction is None or 0 < options.val_fraction < 1,
            f"val_fraction: {options.val_fraction!r}, wanted a share between 0 and 1.",
        ),
        (_is_int(options.split_seed, 0, 1 << 63), f"split_seed: {options.split_seed!r}, wanted an integer from 0."),
        (_is_int(options.workers, 1, 1024), f"workers: {options.workers!r}, wanted 1 to 1024 processes."),
        (
            not (options.resume and options.overwrite),
            "resume and overwrite: both given, wanted one: resume goes on, overwrite begins again.",
        ),
    )
    return next((message for holds, message in checks if not holds), None)


def _is_int(value: object, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high
