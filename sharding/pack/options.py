"""The options of a packing job, checked when they are made."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from epistream.errors import OptionError
from epistream.options import OneOf, Range, SizeRange, check
from epistream.sharding.format.division import Division, Share, SplitSeed
from epistream.sharding.format.features import Channels
from epistream.sharding.layouts.mapping import MappingLayout
from epistream.sharding.pictures.codecs import WRITTEN
from epistream.sharding.pictures.video_encoder import PRESETS, VideoQuality
from epistream.units import parse_size

# How the job runs, which no byte of the result depends on.
_RUNNING = ("workers", "resume", "overwrite", "skip_bad")

Side = Annotated[int, Range(ge=1, le=16_384)]
PictureSize = Annotated[tuple[Side, Side], "(width, height) in pixels, for example 320x240"]


@dataclass(frozen=True)
class PackOptions:
    """How to pack. The first ones decide the bytes of the result, the last four only how the job runs.

    Args:
        layout: insist on this layout instead of finding it from the files. Its name, or a mapping of your own.
        codec: of cameras; as recorded, or jpeg, if None. For those that are arrays in the source: ``jpeg``, or ``png``
            and ``raw``, which keep every bit, or ``h264``, a video. None keeps cameras that are JPEG, PNG or video in
            the source as they are; naming another decodes those, and ``h264`` encodes any video anew. Depth and other
            cameras that are not 8-bit colour are PNG or raw in any case.
        quality: of JPEG, 1 to 100. Where it is encoded.
        crf: of H.264, 0 to 51; less is better and larger. Where it is encoded.
        gop: of H.264, steps of a group of pictures, which is decoded from its first one on.
        preset: of H.264, x264's name for how long to search; slower ones make smaller files.
        shard_size: target bytes of a shard. A number, or text such as ``128MiB``.
        cameras: pack these only; names as in the file or as features. Empty is all.
        drop: features to leave out. Patterns such as ``action_dict.*`` count.
        rename: pairs (old, new) of features, cameras or paths in the source.
        color_order: channel order in which JPEG is decoded. None is what each layout's own reader does. Another than
            what the layout knows of a camera whose rows are JPEG is an error.
        force_color_order: take `color_order` also against what the layout knows.
        image_size: [width, height] in pixels of colour cameras; as recorded if None.
        fps: steps per second; what the source says if None.
        val_fraction: share of the episodes for the split 'val'; from the source's masks if None.
        split_seed: which episodes those are.
        workers: processes. 1 is the calling process alone.
        resume: finish an interrupted job. Keeps the complete shards of one with the same sources and options.
        overwrite: replace the dataset that is there.
        skip_bad: leave out episodes that cannot be packed, and list them. The job fails otherwise.
        allow_outside_files: let HDF5 files read from others outside of their folders. By external links, virtual
            datasets or external storage; what lies in a file's own folder or below may be read in any case. Only for
            files that you trust: the others are listed in the manifest's provenance.

    Raises:
        OptionError: If any of these cannot work.
    """

    layout: str | MappingLayout | None = None
    codec: Annotated[str, OneOf(WRITTEN)] | None = None
    quality: Annotated[int, Range(ge=1, le=100)] = 95
    crf: Annotated[int, Range(ge=0, le=51)] = 18
    gop: Annotated[int, Range(ge=1, le=65_536)] = 30
    preset: Annotated[str, OneOf(PRESETS)] = "medium"
    shard_size: Annotated[int | str, SizeRange(ge=1 << 16, le=1 << 39)] = "128MiB"
    cameras: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    rename: tuple[tuple[str, str], ...] = ()
    color_order: Channels | None = None
    force_color_order: bool = False
    image_size: PictureSize | None = None
    fps: Annotated[float, Range(gt=0, lt=1_000_000)] | None = None
    val_fraction: Share | None = None
    split_seed: SplitSeed = 0
    workers: Annotated[int, Range(ge=1, le=1024)] = 1
    resume: bool = False
    overwrite: bool = False
    skip_bad: bool = False
    allow_outside_files: bool = False

    def __post_init__(self) -> None:
        # Lists and maps are accepted where the fields are tuples, so that the options stay hashable.
        for name in ("cameras", "drop"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(value))
        pairs = self.rename.items() if isinstance(self.rename, Mapping) else self.rename
        object.__setattr__(self, "rename", tuple((str(old), str(new)) for old, new in pairs))
        check(self)
        if self.resume and self.overwrite:
            raise OptionError("resume and overwrite: both given, wanted one: resume goes on, overwrite begins again.")

    @property
    def shard_bytes(self) -> int:
        """Target size of a shard."""
        return parse_size(self.shard_size, "shard_size")

    @property
    def video(self) -> VideoQuality:
        """How to encode video."""
        return VideoQuality(self.crf, self.gop, self.preset)

    @property
    def is_video(self) -> bool:
        """Whether cameras become videos, those that can."""
        return self.codec is not None and WRITTEN[self.codec].storage == "video"

    @property
    def division(self) -> Division | None:
        """How episodes are divided; None for the splits of the sources."""
        return None if self.val_fraction is None else Division(self.val_fraction, self.split_seed)

    def deciding(self) -> dict[str, Any]:
        """The options that decide the bytes of the result, as JSON can hold them."""
        values = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _RUNNING}
        # As jobs of earlier releases noted themselves.
        of_video = ("crf", "gop", "preset")
        is_said = self.is_video or any(values[name] != getattr(PackOptions, name) for name in of_video)
        unknown = () if is_said else of_video
        for name in (*unknown, *(() if self.force_color_order else ("force_color_order",))):
            del values[name]
        values["shard_size"] = self.shard_bytes
        if isinstance(self.layout, MappingLayout):
            values["layout"] = self.layout.plain()
        values["rename"] = [list(pair) for pair in self.rename]
        values["cameras"], values["drop"] = list(self.cameras), list(self.drop)
        values["image_size"] = list(self.image_size) if self.image_size else None
        if not self.allow_outside_files:  # as in releases that did not know it
            del values["allow_outside_files"]
        return values
