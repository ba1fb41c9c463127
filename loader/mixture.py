"""Mixture: several datasets as one stream, by weight."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from epistream.access import Access
from epistream.cache.node import NodeCache
from epistream.errors import OptionError
from epistream.loader.order.mixture_plan import MixturePlan
from epistream.loader.order.mixture_schedule import DatasetPosition, Stop
from epistream.loader.order.schedule import Remainder
from epistream.loader.order.world import World
from epistream.loader.reading.job import DATASET_INDEX, DatasetPart, ReadJob
from epistream.loader.samples.failures import add_note
from epistream.loader.stream import EpisodeStream
from epistream.loader.stream_base import Batch, Stream
from epistream.sharding.format.feature_sets import difference_text


class Mixture(Stream):
    """Windows of several datasets, drawn by weight in an order that is as exact and resumable as that of one.

    Every dataset goes through its own epochs at its own pace, each window once an epoch; after any number of windows
    the share of each dataset is its weight to within 2 L windows (L: lanes). Batches are those of the
    streams, with ``dataset_index`` (int64, (B,)) beside ``episode_index``; their rows are grouped by dataset.

    Args:
        streams: one per dataset, with equal features, shapes and windows. Normalisation, deltas and formats are
            each stream's own. Their batch size, world and remainder are not used. None for `validation`, as a
            mixture does not give each window once.
        weights: above 0, one per stream; only their ratios matter.
        batch_size: windows per batch and rank.
        stop: an epoch of the mixture ends when the first dataset has given all its windows, when all have (smaller
            ones repeat), or after this number of windows. The next one goes on where each dataset was left.
        remainder: as for `EpisodeStream`.
        world: which rank this is; that of the streams by default.

    Raises:
        OptionError: datasets that do not fit together, or numbers that cannot work.
    """

    def __init__(
        self,
        streams: Sequence[EpisodeStream],
        weights: Sequence[float],
        *,
        batch_size: int = 1,
        stop: Stop | int = "first_exhausted",
        remainder: Remainder = "drop",
        world: World | None = None,
    ) -> None:
        super().__init__()
        if not streams:
            raise OptionError("Mixture: no streams, wanted at least one.")
        if isinstance(streams, Mapping) or not all(isinstance(stream, EpisodeStream) for stream in streams):
            raise OptionError("Mixture: wanted a list of EpisodeStream, and a list of as many weights.")
        for number, stream in enumerate(streams):
            if stream.is_validation:
                raise OptionError(
                    f"Mixture: stream {number} has validation=True, wanted streams to draw from by weight; a mixture "
                    "leaves windows out, and repeats others. Read each stream by a StreamingLoader of its own, one "
                    "after the other, into one WindowMean."
                )
        self._streams = tuple(streams)
        # Then their rows need not be finished by each, and put together again.
        self._change_nothing = all(s.changes_nothing and type(s).finish is EpisodeStream.finish for s in streams)
        jobs = [stream._job for stream in streams]  # which rank this is may not be known yet
        parts = tuple(job.part for job in jobs)
        for part in parts[1:]:
            _check_alike(parts[0], part)
        cache = _one_cache(jobs)
        self._plan = MixturePlan([part.plan for part in parts], weights, stop)
        self.finds_world = world is None and streams[0].finds_world
        self.awaits_world = world is None and streams[0].awaits_world
        self._job = ReadJob(parts, world or jobs[0].world, batch_size, remainder, cache, self._plan)
        self._job.schedule(0, 0)  # impossible batch sizes and worlds are told now, not at the first batch

    def positions(self, epoch: int, position: int) -> list[DatasetPosition]:
        """Where each dataset stands (its epoch, and windows consumed in it) at a position of a mixture epoch."""
        return self._plan.schedule.consumed(position, epoch)

    @property
    def hooks(self) -> dict[str, Any]:
        """Those of its streams."""
        numbered = enumerate(self._streams)
        return {f"{name} of stream {n}": hook for n, stream in numbered for name, hook in stream.hooks.items()}

    def finish(self, views: Mapping[str, NDArray[Any]]) -> Any:
        """Each dataset's rows as its own stream makes them, together again; without copying where none copied."""
        owner, marks_repeats = views[DATASET_INDEX], self._job.marks_repeats
        starts = np.flatnonzero(np.diff(owner, prepend=-1)).tolist()
        pieces = [
            (self._streams[int(owner[start])], slice(start, stop))
            for start, stop in zip(starts, [*starts[1:], len(owner)], strict=True)
        ]
        batch: Batch
        if self._change_nothing:
            told = ("task_index", "episode_index")
            tasks = [
                task for stream, rows in pieces for task in stream.tasks({name: views[name][rows] for name in told})
            ]
            batch = self._streams[0].finish(views, marks_repeats, tasks)
        else:
            made = [
                self._finish_rows(int(owner[rows.start]), {name: view[rows] for name, view in views.items()})
                for _, rows in pieces
            ]
            batch = _join(made, views)
        batch[DATASET_INDEX] = torch.from_numpy(owner)
        return batch

    def _finish_rows(self, number: int, views: Mapping[str, NDArray[Any]]) -> Any:
        stream = self._streams[number]
        try:
            return stream.finish(views, self._job.marks_repeats)
        except Exception as error:
            add_note(error, lambda: f"epistream: in stream {number} of the mixture, {stream.job.url}")
            raise


def _check_alike(first: DatasetPart, other: DatasetPart) -> None:
    """Refuse streams whose batches do not lie alike in memory, and say in what they differ."""
    window, wanted = other.window.describe(), first.window.describe()
    if window != wanted:
        raise OptionError(
            f"Mixture: {other.dataset.url}: window {window}, wanted {wanted} as of {first.dataset.url}. Give all "
            "streams the same window=."
        )
    if first.layout(1) == other.layout(1):
        return
    mine, theirs = _said_of(other), _said_of(first)
    difference = difference_text(mine, theirs) or f"features in the order {list(mine)}"
    alike = [name for name, said in theirs.items() if mine.get(name) == said]
    cure = f"features={alike}, which they share" if alike else "features that are alike"
    if first.dtypes != other.dtypes:
        cure += ", or the same dtypes="
    sizes = {said.get("width x height") for one in (mine, theirs) for said in one.values()} - {None}
    if len(sizes) > 1:
        cure += ", or where cameras differ in size only, the same image_size=(height, width)"
    raise OptionError(
        f"Mixture: {other.dataset.url}: {difference}, wanted batches as of {first.dataset.url}. Give all streams "
        f"{cure}."
    )


def _said_of(part: DatasetPart) -> dict[str, dict[str, str]]:
    """What matters of each feature where batches are put together."""
    described = {}
    for field in part.layout(1).fields:
        feature = part.features.get(field.name)
        if feature is not None:
            shape = field.shape[2:]
            size = {"shape": str(shape)}
            if feature.kind == "frames":
                size = {"width x height": f"{shape[1]}x{shape[0]}", "channels": str(shape[2])}
            described[field.name] = {"kind": feature.kind, "dtype": str(field.dtype), **size}
    return described


def _one_cache(jobs: Sequence[ReadJob]) -> NodeCache:
    """One cache for all: a process that enters it once has one budget and one set of counters."""
    storage = Access()
    for job in jobs:
        own = job.dataset.storage_options
        if job.cache.options != jobs[0].cache.options or any(storage.get(key, own[key]) != own[key] for key in own):
            raise OptionError(
                f"Mixture: cache or storage_options of {job.url} differ from those of {jobs[0].url}. Give all streams "
                'the same for each protocol: {"s3": {...}, "http": {...}}.'
            )
        storage = Access({**storage, **own}, {**storage.secrets, **own.secrets}, own.retries)
    return NodeCache(jobs[0].cache.options, storage)


def _join(pieces: list[Any], views: Mapping[str, NDArray[Any]]) -> Batch:
    joined: Batch = {}
    if not all(isinstance(piece, Mapping) and piece.keys() == pieces[0].keys() for piece in pieces):
        raise OptionError(
            f"Mixture: {_unlike(pieces)}, wanted dicts with the same keys, as they are put together. "
            "Format and transform the batch after the mixture."
        )
    for key, first in pieces[0].items():
        parts = [piece[key] for piece in pieces]
        if isinstance(first, torch.Tensor):
            joined[key] = _join_tensors(parts, views.get(key))
        elif isinstance(first, Mapping):
            joined[key] = _join(parts, views)
        elif isinstance(first, list | tuple):
            joined[key] = [item for part in parts for item in part]
        else:
            raise OptionError(
                f"Mixture: {key} of a batch is a {type(first).__name__}, wanted tensors, lists or dicts of these, as "
                "batches of several datasets are put together. Format the batch after the mixture."
            )
    return joined


def _unlike(pieces: list[Any]) -> str:
    """What is other about the first batch that does not fit the others."""
    for piece in pieces:
        if not isinstance(piece, Mapping):
            return f"a batch of one of its streams is a {type(piece).__name__}"
    first, other = pieces[0], next(piece for piece in pieces if piece.keys() != pieces[0].keys())
    nothing: dict[str, str] = {}
    difference = difference_text(dict.fromkeys(map(str, other), nothing), dict.fromkeys(map(str, first), nothing))
    return f"the batch of one stream {difference}, against that of another"


def _join_tensors(parts: list[torch.Tensor], whole: NDArray[Any] | None) -> torch.Tensor:
    """One tensor of all rows: the array that the parts are views of, if they still are, else a copy."""
    if whole is not None and _are_rows(parts, tensor := torch.from_numpy(whole)):
        return tensor.reshape(len(tensor), *parts[0].shape[1:])
    return torch.cat(parts)


def _are_rows(parts: list[torch.Tensor], whole: torch.Tensor) -> bool:
    """Whether the parts are the rows of `whole`, in order. One that its stream changed lies elsewhere."""
    # The address first: it alone tells whether anything was changed, mostly.
    address, dtype, row_shape = whole.data_ptr(), whole.dtype, parts[0].shape[1:]
    for part in parts:
        if part.data_ptr() != address or part.dtype != dtype or part.shape[1:] != row_shape or not part.is_contiguous():
            return False
        address += part.nbytes
    # Rows that were cut short would leave gaps, and the last one would end too early.
    return address == whole.data_ptr() + whole.nbytes
