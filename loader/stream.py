"""EpisodeStream: a torch IterableDataset of whole batches."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from epistream.access import Access
from epistream.cache.node import NodeCache
from epistream.errors import OptionError
from epistream.loader.frames.block_pool_plan import resolved_order
from epistream.loader.frames.frames import FrameOptions
from epistream.loader.options import StreamOptions
from epistream.loader.order.anchors import Anchors
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.plan import Plan
from epistream.loader.order.working_set import budget_advice
from epistream.loader.order.world import World
from epistream.loader.random_access import RandomAccess
from epistream.loader.reading.job import DatasetPart, ReadJob
from epistream.loader.samples.collate import Collator
from epistream.loader.samples.failures import Origin, told
from epistream.loader.samples.normalize import Normalizer
from epistream.loader.samples.transforms import ChannelsFirst, InOrder
from epistream.loader.stream_base import Stream
from epistream.options import changed
from epistream.sharding.dataset import open_dataset
from epistream.sharding.dataset_facts import facts_of
from epistream.sharding.selecting.selection import parse_selection

logger = logging.getLogger(__name__)

Source = str | PathLike[str] | Sequence[str | PathLike[str]]


@runtime_checkable
class StreamConfig(Protocol):
    """What `EpisodeStream.from_config` asks of a configuration, which the loader knows nothing else about."""

    @property
    def source(self) -> Source | None:
        """What to stream, if it says so."""

    def stream_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `EpisodeStream`."""


class WindowPlace(NamedTuple):
    """Where a window is: its shard, its episode's position in the dataset, and its anchor step."""

    shard_url: str
    episode_index: int
    step_index: int


class EpisodeStream(Stream):
    """Windows of recorded episodes, as whole batches, each window once per epoch over all ranks.

    Give it to `StreamingLoader`, or to ``torch.utils.data.DataLoader(stream, batch_size=None, num_workers=4)``
    (then call `set_epoch` before every epoch, as with a DistributedSampler). The order is the same for any number
    of nodes, ranks and workers.

    Every ``for`` over the stream itself is a full pass through the epoch last set, also behind a ``break``, unless
    `resume` or `load_state_dict` says where to go on.

    A batch is a dict; B is `batch_size`, n the number of offsets that the window gives to the feature:

    | key                            | type                                                            |
    | ------------------------------ | --------------------------------------------------------------- |
    | ``observation.images.<cam>``   | uint8 (B, n, H, W, C), in the channel order of who recorded it  |
    | ``observation.<name>``         | (B, n, ...) as stored; float64 becomes float32 unless `dtypes`  |
    | ``action``                     | (B, n, A), likewise                                             |
    | ``<key>_is_pad``               | bool (B, n), True where the episode does not reach              |
    | ``episode_index, step_index``  | int64 (B,): position of the episode in the dataset, anchor step |
    | ``task``                       | list of B str, the episode's first instruction or ""            |
    | ``is_repeat``                  | bool (B,), with `validation`, ``remainder="pad"`` and           |
    |                                | ``on_bad="skip"`` only                                          |
    """

    def __init__(
        self,
        source: Source,
        options: StreamOptions | None = None,
        *,
        world: World | None = None,
        storage_options: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> None:
        """Open the dataset's manifest and decide the order; no episode is read.

        Args:
            source: a dataset folder or URL, a brace pattern of tars, HDF5 files, a LeRobot data set's folder or URL, or
                a list of these.
            options: all options together; see `StreamOptions`.
            world: which rank this is; by default what torch.distributed says, from when on it is initialised, or the
                launcher.
            storage_options: for fsspec, as in ``fsspec.open(url, **storage_options)``, or by protocol.
            changes: single options by name, for example ``batch_size=32``.

        Raises:
            OptionError: options that cannot work, alone or with this dataset.
            SourceError, FormatError: a dataset that is missing or torn.
        """
        super().__init__()
        options = changed(options or StreamOptions(), changes, "EpisodeStream")
        dataset = open_dataset(
            source,
            Access.of(storage_options).trying(options.cache_options.retries),
            on_bad=options.on_bad,
            layout=options.layout,
            allow_outside_files=options.allow_outside_files,
            features=options.features,
            val_fraction=options.val_fraction,
            split_seed=options.split_seed,
        )
        self._collator = Collator(dataset, options)
        chosen, window = self._collator.features, self._collator.window
        if options.validation:
            if not self._collator.marks_repeats:
                raise OptionError(
                    "validation: ACT's tuples have no place for the marks of repeats, wanted one. Give "
                    "sample_format=ActFormat(marks_repeats=True), whose tuples have a fifth item."
                )
            options = replace(options, shuffle=False, remainder="pad")
        times = None if options.repetitions is None else np.asarray(options.repetitions, dtype=np.int64)
        selected = None
        if options.episodes is not None:
            facts = facts_of(dataset, layout=options.layout, allow_outside_files=options.allow_outside_files)
            selected = parse_selection(options.episodes).rows(facts)
        anchors = Anchors(dataset, options.split_of(dataset), *window.anchor_rule(chosen), times, selected)
        order = options.order or OrderOptions()
        if options.validation:
            order = order.in_storage_order()
        frames = FrameOptions(options.image_size, options.decode)
        order = replace(order, shuffle=options.shuffle, seed=options.seed)
        order = resolved_order(order, dataset.episode_length, chosen, window, frames)
        part = DatasetPart(
            dataset=dataset,
            features=chosen,
            window=window,
            anchors=anchors,
            plan=Plan.of(anchors, dataset, order),
            instruction=options.instruction,
            on_bad=options.on_bad,
            frames=frames,
            dtypes=self._collator.dtypes,
        )
        cache = NodeCache(options.cache_options, dataset.storage_options)
        self.is_validation = options.validation
        self.finds_world = world is None
        self.awaits_world = self.finds_world and World.is_to_come()
        world = World() if self.awaits_world else world or World.detect()
        self._job = ReadJob((part,), world, options.batch_size, options.remainder, cache)
        cameras = tuple(name for name, feature in chosen.items() if feature.kind == "frames")
        self._hooks = {"transform": options.transform, "sample_format": options.sample_format}
        steps = (ChannelsFirst(cameras) if options.channels_first else None, options.transform)
        self._transform = InOrder(tuple(step for step in steps if step is not None))
        self._job.schedule(0, 0)  # impossible batch sizes and worlds are told now, not at the first batch
        self._check_budget(options.cache_options.budget("shm"))

    def _check_budget(self, budget_bytes: int | None) -> None:
        """Warn of a budget that the order does not fit into: shards are fetched, or frames decoded, again and again."""
        if budget_bytes is None:
            return
        job = self._job
        advice = budget_advice(job.part.plan, budget_bytes, job.batch_size * job.world.size)
        [pool] = job.pools
        if advice is None and pool is not None and (too_large := pool.too_large_for(budget_bytes)):
            advice = f"{too_large}, or a larger budget."
        if advice is not None:
            logger.warning("%s: %s", job.url, advice)

    @classmethod
    def from_config(cls, config: StreamConfig, source: Source | None = None, **changes: Any) -> "EpisodeStream":
        """The stream that a configuration describes, for example one of `epistream.load_config`.

        Args:
            config: a source and arguments.
            source: what to stream instead of the configuration's source.
            changes: arguments that win over the configuration's.

        Raises:
            OptionError: neither names a source; and as the constructor.
        """
        if not isinstance(config, StreamConfig):
            found = repr(config) if isinstance(config, str) else type(config).__name__  # others may hold secrets
            raise OptionError(
                f"from_config: {found}, wanted a configuration. Use from_config(epistream.load_config({found}))."
            )
        source = config.source if source is None else source
        if source is None:
            raise OptionError("from_config: no source. Name one here, or as 'source' in the configuration.")
        return cls(source, **{**config.stream_arguments(), **changes})

    @property
    def normalizer(self) -> Normalizer | None:
        """What `normalize` does, for ``unnormalize`` of a policy's actions and for the checkpoint; None without it."""
        return self._collator.normalizer

    def locate(self, position: int, epoch: int | None = None) -> WindowPlace:
        """The window that stands at a position of an epoch, to look into a step that went wrong.

        Global batch t of an epoch is positions ``[t * G, (t + 1) * G)``, G being batch size x ranks; a state's
        `position` is the first that was not consumed yet.

        Args:
            position: in [0, num_windows).
            epoch: the epoch; that of the next iteration by default.

        Raises:
            OptionError: no such position or epoch.
        """
        order = self._job.part.plan.epoch(self.cursor[0] if epoch is None else epoch)
        shard, k = order.windows(np.array([position], dtype=np.int64))
        episode_index, _, step = self._job.part.anchors.locate(shard, k)
        return WindowPlace(self._job.dataset.shard_url[int(shard[0])], int(episode_index[0]), int(step[0]))

    def read(self, episode_index: int, step: int) -> Any:
        """One window as a batch of one, read now; its instruction is the first.

        Raises:
            OptionError: there is no such episode or step.
        """
        job, part, dataset = self._job, self._job.part, self._job.dataset
        if not 0 <= episode_index < dataset.num_episodes or not 0 <= step < dataset.episode_length[episode_index]:
            raise OptionError(
                f"read: episode {episode_index}, step {step} of {dataset.num_episodes} episodes. Their lengths are in "
                "open_dataset(...).episode_length."
            )
        access = RandomAccess(dataset, part.features, part.window, job.cache, job.reader_options[0])
        views = access.read([episode_index], [step])
        return told(
            self.finish, views, lambda: Origin(job.parts, views, "one window, read alone"), "transform or sample_format"
        )

    @property
    def hooks(self) -> dict[str, Any]:
        """What the user gave to be called on batches, by option."""
        return self._hooks

    @property
    def changes_nothing(self) -> bool:
        """Whether `finish` only gives the arrays their names."""
        return self._collator.changes_nothing and not self._transform.steps

    def tasks(self, views: Mapping[str, NDArray[Any]]) -> list[Any]:
        """The instruction of each row, or all of them, of arrays that hold ``task_index`` and ``episode_index``."""
        return self._collator.tasks(views)

    def finish(
        self, views: Mapping[str, NDArray[Any]], with_repeats: bool | None = None, tasks: list[Any] | None = None
    ) -> Any:
        """Turn the arrays of a batch into what a training loop gets. Tensors share the arrays' memory.

        Args:
            views: the arrays.
            with_repeats: whether ``is_repeat`` is among the results; by default where there can be any.
            tasks: the instructions, where they are not all of this dataset.
        """
        if with_repeats is None:
            with_repeats = self._job.marks_repeats
        return self._transform(self._collator(views, with_repeats, tasks))
