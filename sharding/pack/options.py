"""The options of a packing job, checked when they are made."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any

from epistream.errors import OptionError
from epistream.options import OneOf, Range, SizeRange, check
from epistream.sharding.format.division import Division, Share, SplitSeed
from epistream.sharding.format.features import Channels, Feature
from epistream.sharding.layouts.mapping import MappingLayout
from epistream.sharding.pictures.codecs import WRITTEN
from epistream.sharding.pictures.video_encoder import PRESETS, VideoQuality
from epistream.sharding.selecting.selection import Episodes, Selection, parse_selection
from epistream.sharding.tasks.engine import EngineName, EngineOptions
from epistream.units import parse_size

# How the job runs, which no byte of the result depends on.
_RUNNING = (
    *("workers", "engine", "address", "task_index", "num_tasks", "publish"),
    *("resume", "overwrite", "skip_bad"),
)

Side = Annotated[int, Range(ge=1, le=16_384)]
PictureSize = Annotated[tuple[Side, Side], "(width, height) in pixels, for example 320x240"]


@dataclass(frozen=True)
class PackOptions:
    """How to pack. The first ones decide the bytes of the result, those from `workers` on only how the job runs.

    Args:
        layout: insist on this layout instead of finding it from the files. Its name, its YAML file, or a mapping.
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
        episodes: of the sources, the ones of a selection such as ``0:100``, ``success and length < 500`` or ``@FILE``;
            all if None. See ``docs/selecting.md``.
        val_fraction: chance of an episode to be in the split 'val'; from the source's masks if None.
        split_seed: which episodes those are.
        workers: tasks at once. None is the calling process alone, and with Ray as many as its cluster has CPUs for.
        engine: what runs them, ``local`` or ``ray``. Processes of this machine, or those of a Ray cluster.
        address: of Ray's cluster. ``auto`` for the one of this machine, ``HOST:PORT`` or ``ray://HOST:PORT``. None
            starts one here, which ends with the job.
        task_index: make only this task's share of the shards. From 0; others make the rest, in any order and at once.
            A task that was killed is run again.
        num_tasks: of how many tasks the job is, the same for all.
        publish: join what the tasks of an array made into the dataset. It reads what they left, and no shard.
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
    episodes: Episodes | Selection | None = None
    val_fraction: Share | None = None
    split_seed: SplitSeed = 0
    workers: Annotated[int, Range(ge=1, le=1024)] | None = None
    engine: EngineName = "local"
    address: str | None = None
    task_index: Annotated[int, Range(ge=0, le=999_999)] | None = None
    num_tasks: Annotated[int, Range(ge=1, le=1_000_000)] | None = None
    publish: bool = False
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
        if self.episodes is not None:
            object.__setattr__(self, "episodes", parse_selection(self.episodes))
        check(self)
        if self.resume and self.overwrite:
            raise OptionError("resume and overwrite: both given, wanted one: resume goes on, overwrite begins again.")

        self._check_array()
        _ = self.engine_options  # it refuses what cannot work

    def _check_array(self) -> None:
        index, number = self.task_index, self.num_tasks
        if (index is None) != (number is None):
            raise OptionError(f"task_index: {index}, num_tasks: {number}, wanted both of a task of an array, or none.")
        if index is not None and number is not None and index >= number:
            raise OptionError(f"task_index: {index}, wanted 0 to {number - 1}, of {number} tasks.")
        if self.publish and (index is not None or self.resume or self.overwrite):
            raise OptionError("publish: with a task, resume or overwrite, wanted alone, after all tasks have ended.")

    @property
    def engine_options(self) -> EngineOptions:
        """Where the tasks run."""
        return EngineOptions(self.engine, self.address, self.workers)

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
    def selection(self) -> Selection | None:
        """Which episodes are packed; None for all."""
        return None if self.episodes is None else parse_selection(self.episodes)

    @property
    def asks_of_episodes(self) -> bool:
        """Whether episodes are chosen by their instructions or attributes, which files have to be looked at for."""
        names = frozenset[str]() if self.selection is None else self.selection.names
        return any(name == "task" or name.startswith("@") for name in names)

    @property
    def division(self) -> Division | None:
        """How episodes are divided; None for the splits of the sources."""
        return None if self.val_fraction is None else Division(self.val_fraction, self.split_seed)

    def chosen_features(
        self,
        found: Iterable[Mapping[str, Feature]],
        usual: Mapping[str, Feature],
    ) -> Mapping[str, Feature]:
        """The features that all packed episodes have, of those that any has: what most of them have.

        Args:
            found: The features of each kind of episode.
            usual: Those of most of them.
        """
        return usual

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
        del values["episodes"]
        if self.selection is not None:
            values["episodes"] = self.selection.identity
        if not self.allow_outside_files:  # as in releases that did not know it
            del values["allow_outside_files"]
        return values
