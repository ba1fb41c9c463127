"""Everything a user may say about a stream, in one place."""

from collections.abc import Collection
from dataclasses import dataclass, fields
from os import PathLike
from typing import Annotated, Any

from epistream.cache.options import CacheOptions
from epistream.cache.options import Mode as CacheMode
from epistream.errors import OptionError
from epistream.hints import in_short
from epistream.loader.frames.frames import Decode
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.random_integers import Seed
from epistream.loader.order.schedule import Remainder
from epistream.loader.reading.job import OnBad
from epistream.loader.samples.collate import SampleOptions
from epistream.loader.samples.transforms import Transform
from epistream.options import Count, Range
from epistream.sharding.format.division import Share, SplitSeed
from epistream.sharding.format.episode_meta import NO_SPLIT
from epistream.sharding.manifest.opened_dataset import Dataset
from epistream.sharding.selecting.selection import Episodes, parse_selection

_MOST_CHARACTERS = 200  # of one option in a repr
BatchSize = Annotated[Count, "an integer of at least 1", Range(le=1 << 20)]


@dataclass(frozen=True)
class StreamOptions(SampleOptions):
    """Options of `EpisodeStream`, which takes each of them by name as well. All have a default.

    Args:
        batch_size: windows per batch and rank.
        window: step offsets to read. The anchor step alone by default.
        features: names to stream, in this order; all if None. Patterns such as ``"observation.images.*"`` stand for
            what they match, in the dataset's order. Of several sources and HDF5 files, what is named must be alike.
        dtypes: float32 or float64 by feature, or by pattern such as ``observation.*``. Arrays come as they are stored,
            but float64 as float32; of seconds since 1970 that leaves one value for two minutes, which a warning says.
            ``{"timestamp": "float64"}`` keeps what is stored; features that are normalised are so in their dtype.
        split: a split of the dataset; all if None. ``"auto"`` is ``"train"`` where there is one, else all; with
            `validation` it is ``"val"``.
        val_fraction: share of the episodes for the split ``"val"``. From the masks of HDF5 files, or as a LeRobot data
            set says, if None. The same episodes as ``epistream pack --val-fraction`` takes of the same source; give it
            to the streams of both splits. Not for shards.
        split_seed: which episodes those are, as in packing.
        validation: every window of the split exactly once over all ranks, in the order of the dataset. Ranks get
            equally many batches, the last ones filled up with repeats that are marked ``is_repeat``, as `remainder`
            ``"pad"`` does; `shuffle` is not looked at. `WindowMean` takes means that count no repeat.
        shuffle: False streams in storage order.
        seed: of the order. Must be the same on all ranks.
        remainder: windows that fill no global batch. ``"drop"`` leaves them out, ``"pad"`` fills up with repeats,
            ``"uneven"`` lets the last batches differ (not under DDP).
        image_size: [height, width] in pixels that camera frames are resized to as they are read. See `FrameOptions`
            for the filters.
        decode: whether decoded frames are kept. ``"per_read"`` decodes a frame whenever a window shows it; ``"once"``
            keeps them in the node's cache as they are read, as far as they fit; ``"auto"`` keeps all or none: all must
            fit ``budget_bytes``, or an eighth of the available memory and 4 GiB at most; by blocks the frames of those
            that windows are drawn from. The batches are the same.
        channels_first: pictures as (..., C, H, W). Instead of (..., H, W, C), as views of the same memory. Not with a
            preset `sample_format`, which decides that itself.
        squeeze: drop step axes of length 1. Of features, and their masks, that have a single offset.
        sample_format: batches as these code bases make them. ``"act"``, ``"diffusion_policy"``, ``"lerobot"`` or
            ``"ilstudio"``, with their windows (unless one is given), padding and masks; or such a format with options
            of its own, for example ``IlStudioFormat(chunk_size=50)``; or a function, called on every batch in the
            training process, whose result is yielded.
        delta_timestamps: offsets in seconds by feature, which win over the window's. See `window_in_seconds`.
        tolerance_s: seconds that a recorded step may lie from a wanted time.
        action_delta: actions relative to states. ``"delta_step"`` makes them ``action[t+i] - state[t+i]``,
            ``"delta_first"`` ``action[t+i] - state[t]``; `ActionDelta` says of which features and dimensions.
        normalize: by the dataset's statistics; for all states and actions, or by feature. ``"mean_std"``,
            ``"min_max"`` or ``"quantiles"``, or a `Normalizer`. After padding and deltas. See
            `EpisodeStream.normalizer`.
        instruction: of an episode with several. The ``"first"``, a ``"random"`` one for each window and epoch, or
            ``"all"``, as a tuple.
        on_bad: what a shard that cannot be read does. ``"raise"`` an error, or ``"skip"``: its windows are replaced by
            repeats from other shards, marked ``is_repeat`` and listed in the report. HDF5 files that cannot be opened
            are left out, with a warning, and named in ``stream.job.dataset.skipped``.
        layout: of HDF5 files, or a YAML file that describes one; found if None. The name of a known one, or a file of
            your own (see ``docs/hdf5.md``). Not for shards.
        allow_outside_files: let HDF5 files read from others outside of their folders. By external links, virtual
            datasets or external storage; what lies in a file's own folder or below may be read in any case. Only for
            files that you trust. Not for shards.
        episodes: of the split, the ones of a selection such as ``"0:100"``, ``"success and length < 500"`` or
            ``"@FILE"``; all if None. Or numbers of episodes, or a truth value for each; see ``docs/selecting.md``. An
            ``episode_index`` stays the position in the dataset, and statistics are the dataset's.
        repetitions: how often the windows of each episode stand in an epoch, one number per episode of the
            dataset, 0 to leave it out: a curriculum.
        order: the finer points of the order. Its `shuffle` and `seed` are replaced by those here.
        cache: where shards are kept on this node.
        transform: called on every finished batch in the training process, for example `ImagesToFloat`; its result is
            yielded. Augmentation belongs on the device, see ``StreamingLoader(on_device=)``.

    Raises:
        OptionError: a value that cannot work, whatever the dataset.
    """

    batch_size: BatchSize = 1
    split: str | None = "auto"
    val_fraction: Share | None = None
    split_seed: SplitSeed = 0
    validation: bool = False
    shuffle: bool = True
    seed: Seed = 0
    remainder: Remainder = "drop"
    episodes: Episodes | None = None
    repetitions: Collection[int] | None = None
    order: OrderOptions | None = None
    cache: CacheMode | CacheOptions = "auto"
    on_bad: OnBad = "raise"
    layout: str | PathLike[str] | None = None
    allow_outside_files: bool = False
    decode: Decode = "auto"
    channels_first: bool = False
    transform: Transform | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.episodes is not None:
            parse_selection(self.episodes)  # what is no selection is told before any data is touched
        if self.channels_first and self.sample_format is not None:
            raise OptionError("channels_first: the sample_format decides the shapes itself. Leave channels_first out.")
        if self.validation and self.remainder == "uneven":
            raise OptionError(
                "validation: with remainder='uneven', wanted equally many batches on all ranks. Give remainder='pad'."
            )
        if self.validation and self.repetitions is not None:
            raise OptionError(
                "validation: with repetitions, wanted every window exactly once. Give repetitions=None, or "
                "validation=False."
            )

    def split_of(self, dataset: Dataset) -> str | None:
        """The split of a dataset that is streamed; None for all episodes.

        Raises:
            OptionError: it is for validation, and there is none for that.
        """
        if self.split != "auto":
            return self.split
        if not self.validation:
            return "train" if "train" in dataset.splits else None
        if "val" in dataset.splits:
            return "val"
        splits = [name for name in dataset.splits if name not in ("train", NO_SPLIT)]
        named = "".join(f"split={name!r}, " for name in splits)
        cure = (
            "divide them: val_fraction=0.1 for HDF5 files and LeRobot data sets, in the training stream as well; for "
            "shards when you pack: epistream pack --val-fraction 0.1"
        )
        if self.val_fraction is not None:
            cure = "more episodes: one cannot be divided"
        raise OptionError(
            f"{dataset.url}: splits {', '.join(dataset.splits)}, wanted 'val' for validation. Give {named}split=None "
            f"for all episodes, or {cure}."
        )

    def __repr__(self) -> str:
        """Every option; long ones, such as a number for each episode, in short."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        texts = (f"{name}={_told(value)}" for name, value in values.items())
        return f"{type(self).__name__}({', '.join(texts)})"

    @property
    def cache_options(self) -> CacheOptions:
        """`cache`, with defaults for what a mode leaves open."""
        return self.cache if isinstance(self.cache, CacheOptions) else CacheOptions(mode=self.cache)


def _told(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MOST_CHARACTERS else in_short(value)
