"""Everything a user may say about a stream, in one place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from typing import Any, get_args

from epistream.cache.options import CacheOptions
from epistream.cache.options import Mode as CacheMode
from epistream.errors import OptionError
from epistream.hints import did_you_mean
from epistream.loader.order.plan import OrderOptions
from epistream.loader.order.schedule import Remainder
from epistream.loader.order.window import Window
from epistream.loader.reading.frames import Decode
from epistream.loader.reading.job import OnBad
from epistream.loader.samples.collate import SampleOptions
from epistream.loader.samples.transforms import Transform


@dataclass(frozen=True)
class StreamOptions(SampleOptions):
    """Options of `EpisodeStream`, which takes each of them by name as well. All have a default.

    Args:
        batch_size: windows per batch and rank.
        window: step offsets to read; the anchor step alone by default.
        features: names to stream, in this order; all by default.
        split: a split of the dataset, None for all of it; ``"auto"`` is ``"train"`` where there is one, else all.
        shuffle: False streams in dataset order.
        seed: of the order. Must be the same on all ranks.
        remainder: what happens to the last windows that do not fill a global batch: ``"drop"`` leaves them out,
            ``"pad"`` fills up with repeats, ``"uneven"`` lets the last batches differ (not under DDP).
        repetitions: how often the windows of each episode stand in an epoch, one number per episode of the
            dataset, 0 to leave it out: a curriculum.
        order: the finer points of the order; its `shuffle` and `seed` are replaced by those here.
        cache: where shards are kept on this node.
        on_bad: what a shard that cannot be read does: ``"raise"`` an error, or ``"skip"``: its windows are replaced by
            repeats from other shards, marked ``is_repeat`` and listed in the report. HDF5 files that cannot be opened
            are left out, with a warning, and named in ``stream.job.dataset.skipped``.
        layout: of HDF5 files: the name of a known one, or a YAML file of your own (see ``docs/hdf5.md``); found from
            each file by default. Not for shards.
        image_size: (height, width) in pixels to which camera frames are resized as they are decoded; see
            `FrameOptions` for the filters.
        decode: ``"per_read"`` decodes a frame whenever a window shows it; ``"once"`` decodes whole episodes once per
            node and keeps them in the cache, as far as they fit; ``"auto"`` is ``"once"`` where all of them fit the
            cache's budget. The batches are the same.
        channels_first: pictures as (..., C, H, W) instead of (..., H, W, C): views of the same memory. Not with a
            preset `sample_format`, which decides that itself.
        transform: called on every finished batch in the training process, for example `ImagesToFloat`; its result is
            yielded. Augmentation belongs on the device, see ``StreamingLoader(on_device=)``.
        squeeze: drop the step axis of features (and their masks) that have a single offset.
        sample_format: ``"act"``, ``"diffusion_policy"``, ``"lerobot"`` or ``"ilstudio"``: batches as these code bases
            make them, with their windows (unless one is given), padding and masks; or such a format with options
            of its own, for example ``IlStudioFormat(chunk_size=50)``; or a function, called on every batch in the
            training process, whose result is yielded.
        delta_timestamps: offsets in seconds by feature, which win over those of `window`; see `window_in_seconds`.
        tolerance_s: how far from a recorded step a time may lie, in seconds.
        action_delta: ``"delta_step"`` makes actions ``action[t+i] - state[t+i]``, ``"delta_first"``
            ``action[t+i] - state[t]``; `ActionDelta` says of which features and dimensions.
        normalize: ``"mean_std"``, ``"min_max"`` or ``"quantiles"`` of the dataset's statistics, for all state and
            actions or by feature; or a `Normalizer`. After padding and deltas. See `EpisodeStream.normalizer`.
        instruction: of an episode with several: the ``"first"``, a ``"random"`` one for each window and epoch, or
            ``"all"``, as a tuple.

    Raises:
        OptionError: a value that cannot work, whatever the dataset.
    """

    batch_size: int = 1
    split: str | None = "auto"
    shuffle: bool = True
    seed: int = 0
    remainder: Remainder = "drop"
    repetitions: Sequence[int] | None = None
    order: OrderOptions | None = None
    cache: CacheMode | CacheOptions = "auto"
    on_bad: OnBad = "raise"
    layout: str | PathLike[str] | None = None
    image_size: tuple[int, int] | None = None
    decode: Decode = "auto"
    channels_first: bool = False
    transform: Transform | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            raise OptionError(f"batch_size: {self.batch_size!r}, wanted an integer of at least 1.")
        if self.window is not None and not isinstance(self.window, Window):
            raise OptionError(f"window: {self.window!r}, wanted a Window, for example Window(action=range(16)).")
        if self.on_bad not in get_args(OnBad):
            raise OptionError(f"on_bad: {self.on_bad!r}, wanted 'raise' or 'skip'.")
        if self.channels_first and self.sample_format is not None:
            raise OptionError("channels_first: the sample_format decides the shapes itself. Leave channels_first out.")

    @property
    def cache_options(self) -> CacheOptions:
        """`cache`, with defaults for what a mode leaves open."""
        return self.cache if isinstance(self.cache, CacheOptions) else CacheOptions(mode=self.cache)


def changed(options: StreamOptions, changes: Mapping[str, Any]) -> StreamOptions:
    """The options with some of them replaced.

    Raises:
        OptionError: a name that is no option; the nearest one is named.
    """
    names = [item.name for item in fields(StreamOptions)]
    for name in changes:
        if name not in names:
            hint = did_you_mean(name, names, f"Options are {', '.join(sorted(names))}.")
            raise OptionError(f"EpisodeStream: no option {name!r}. {hint}")
    return replace(options, **changes)
