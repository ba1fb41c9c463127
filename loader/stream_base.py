"""What every stream is: an iterable dataset of whole batches with an epoch, a position and a state."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from epistream.errors import OptionError, StateError
from epistream.hints import in_short
from epistream.loader import accelerated
from epistream.loader.order.world import World
from epistream.loader.order_log import log_break, log_order, log_untold_rank
from epistream.loader.reading.job import ReadJob
from epistream.loader.samples.stacking import caller, refuse_stacking
from epistream.loader.state import MOST_EPOCHS, Place, check_state, make_state, whole_number
from epistream.loader.stream_cells import ACCELERATE, Cell, Cells, take_cells
from epistream.loader.stream_iterator import StreamIterator
from epistream.shown_urls import shown

Batch = dict[str, Any]


class Stream(IterableDataset[Batch], ABC):
    """Base of `EpisodeStream` and `Mixture`.

    It has no ``__len__``, because training code takes whatever has one for a map-style dataset: see `num_batches`
    and `num_windows`.
    """

    _job: ReadJob
    finds_world = False  # nobody gave a world by hand: it is that of the process group, from when on there is one
    awaits_world = False  # the launcher says that there are several ranks, and not yet which this is

    def __init__(self) -> None:
        self._shared, self._pid = take_cells(), os.getpid()
        self._place: Place | None = None  # of the loop over the stream in this process
        self._is_loaded = False  # where the next iteration begins is that of a state
        self._has_told_of_break = False

    def __repr__(self) -> str:
        job, (epoch, position, _) = self._job, self.next_place
        of = f"{len(job.parts):,} datasets" if job.mixture is not None else "1 dataset"
        at = f" at window {position:,}" if position else ""
        return (
            f"{type(self).__name__}({in_short(shown(job.url))}: {job.num_windows:,} windows of {of}, "
            f"batch_size={job.batch_size}, rank {job.world.rank} of {job.world.size}, next epoch {epoch}{at})"
        )

    @property
    def _cells(self) -> Cells:
        """The cells of this stream, in memory shared with the workers of its DataLoader.

        A copy has cells of its own, and so has each rank that was forked or given the stream: ranks go through their
        epochs by themselves.
        """
        if self._pid != os.getpid() and get_worker_info() is None:
            cells = take_cells()
            cells.copy_(self._shared)
            cells[Cell.NUM_READERS] = 0
            self._shared, self._pid = cells, os.getpid()
        return self._shared

    @property
    def loaded_place(self) -> Place | None:
        """Where the next iteration goes on after `load_state_dict`; None if it does not."""
        return self.next_place if self._is_loaded else None

    @property
    def job(self) -> ReadJob:
        """What is read, in which order, for which rank."""
        if self.finds_world:
            # Streams are made before the process group is: in notebooks, and wherever processes are spawned.
            world = self._find_world()
            self.awaits_world = False
            if world != self._job.world:
                self._job = replace(self._job, world=world)
        return self._job

    def _find_world(self) -> World:
        is_worker = get_worker_info() is not None
        if is_worker and self._shared[Cell.SIZE]:
            # Workers know of no process group, and those that stay alive may be older than it.
            rank, size, local_rank, local_size, node, num_nodes, uneven = self._shared[Cell.RANK :].tolist()
            return World(rank, size, local_rank, local_size, node, num_nodes, bool(uneven))
        world = World.detect() if self.awaits_world else World.of_process_group(self._job.world)
        if not is_worker and world != self._job.world:
            fields = (world.rank, world.size, world.local_rank, world.local_size, world.node, world.num_nodes)
            self._cells[Cell.RANK :] = torch.tensor([*fields, world.uneven], dtype=torch.int64)
        return world

    def _look_for_world(self) -> None:
        """Let workers of a DataLoader have the world as it is by now."""
        if not (self.awaits_world and World.is_to_come()):
            _ = self.job

    def __getstate__(self) -> dict[str, Any]:
        self._look_for_world()  # workers that a DataLoader spawns get the world as it is now
        return {**self.__dict__, "_pid": -1}  # no process has that number: whoever gets it is another one, or a copy

    @abstractmethod
    def finish(self, views: Mapping[str, NDArray[Any]]) -> Any:
        """Turn the arrays of a batch into what a training loop gets. Tensors share the arrays' memory."""

    @property
    @abstractmethod
    def hooks(self) -> dict[str, Any]:
        """What the user gave to be called on batches, by option."""

    @property
    def num_windows(self) -> int:
        """Windows of an epoch, over all ranks, before the remainder is dropped or padded."""
        return self.job.num_windows

    @property
    def num_batches(self) -> int:
        """Batches that this rank gets from the next iteration."""
        return self.job.schedule(*self.cursor).num_batches

    @property
    def cursor(self) -> tuple[int, int]:
        """Epoch and position at which the next iteration begins."""
        return self.next_place[:2]

    @property
    def next_place(self) -> Place:
        """Where the next iteration begins."""
        epoch, position, num_given, *_ = self._cells.tolist()
        return Place(epoch, position, None if num_given < 0 else num_given)

    def set_epoch(self, epoch: int, position: int | None = None) -> None:
        """Let the next iteration be of `epoch`.

        Args:
            epoch: the epoch.
            position: where in it, in windows over all ranks. By default the start, but where a loaded state stands if
                that is in this epoch: loops set the epoch after they have loaded a state. If the state was taken at
                the end of this epoch, the next iteration gives nothing.
        """
        numbers = whole_number(epoch), 0 if position is None else whole_number(position)
        if any(number is None or not 0 <= number <= MOST_EPOCHS for number in numbers):
            told = f"epoch {in_short(epoch)}, position {in_short(position)}"
            raise OptionError(f"set_epoch: {told}, wanted integers of 0 or more. Count epochs from 0.")
        loaded = None if position is not None else self.loaded_place
        loader = accelerated.active_loader(self)
        if loader is not None:
            accelerated.check_epoch(epoch, loaded)
        if loaded is not None and loaded.epoch == epoch:
            self.set_place(loaded, is_loaded=True)
        elif loaded is not None and loaded[:2] == (epoch + 1, 0):
            self.set_place(Place(epoch, self.num_windows, None), is_loaded=True)
        else:
            self.set_place(Place(epoch, position or 0, None if position else 0))
        if loader is not None:
            self._cells[Cell.NUM_RANKS] = accelerated.ranks_to_read(loader, self.job, epoch)

    def set_place(self, place: Place, is_loaded: bool = False) -> None:
        """Let the next iteration begin there; `is_loaded` if that is where a state was taken."""
        num_given = -1 if place.num_given is None else place.num_given
        self._cells[: Cell.IS_TOLD] = torch.tensor([place.epoch, place.position, num_given], dtype=torch.int64)
        self._cells[Cell.NUM_READERS : Cell.RANK] = 0
        self._cells[Cell.IS_SET] = 1
        self._look_for_world()
        self._place, self._is_loaded = None, is_loaded

    def go_on_at(self, place: Place) -> None:
        """Let the next iteration begin there; in the middle of an epoch as from a state: `set_epoch` keeps it."""
        self.set_place(place, is_loaded=place.position > 0 or self.loaded_place == place)

    def resume(self) -> None:
        """Let the next ``for`` go on where the last one stopped, as ``load_state_dict(state_dict())`` behind it.

        Where it ran to its end, the next ``for`` is the next epoch. A `set_epoch` behind the loop wins. Of a stream
        in a `StreamingLoader` the loader knows where the loop is: call its `resume`.

        Raises:
            StateError: as `state_dict`.
        """
        self.go_on_at(self._where("resume", "Take a StreamingLoader, which has resume(), too"))

    def state_dict(self) -> dict[str, Any]:
        """Where the loop over the stream is, under 1 kB. See `StreamingLoader.state_dict`.

        After `set_epoch` and `load_state_dict` it is where the next iteration begins.

        Raises:
            StateError: workers of a DataLoader, or Accelerate, read the stream. They read ahead of the loop, and how
                far it is only the loader knows.
        """
        instead = (
            "Save the state of a StreamingLoader or of torchdata's StatefulDataLoader, or save between epochs, "
            "after set_epoch"
        )
        return make_state(self.job, self._where("state_dict", instead))

    def _where(self, asked: str, instead: str) -> Place:
        num_readers = int(self._cells[Cell.NUM_READERS])
        if self._place is None and num_readers and get_worker_info() is None:
            readers = "Accelerate reads" if num_readers < 0 else f"{num_readers} workers of a DataLoader read"
            raise StateError(
                f"{asked}: {readers} this stream ahead of the loop, and only the loader knows where the loop is. "
                f"{instead}."
            )
        return self._place or self.next_place

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next iteration begin where `state` was taken. Raises StateError if it belongs to another stream.

        Where workers of a DataLoader read the stream, every iteration begins there until `set_epoch`.
        """
        place = check_state(self.job, state)
        # In a worker, a StatefulDataLoader is about to load the iterator's own state, and what is shared is not a
        # worker's to change: the training process may have set the next epoch by now.
        if get_worker_info() is None:
            self.set_place(place, is_loaded=True)

    def __iter__(self) -> Iterator[Any]:
        """This rank's batches of the epoch last set, or this DataLoader worker's share of them.

        Raises:
            OptionError: a DataLoader iterates that would stack whole batches, for want of ``batch_size=None``.
        """
        refuse_stacking(self._job.url, self._job.batch_size, caller())
        worker = get_worker_info()
        worker_index, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        if worker_index == 0 and not self._cells[Cell.IS_TOLD]:
            self._cells[Cell.IS_TOLD] = 1
            log_order(self.job)
        accelerated.check_iteration(self, self.job, self.cursor[0])
        follow, num_ranks = None, int(self._cells[Cell.NUM_RANKS])
        self._cells[Cell.NUM_READERS] = num_workers
        if worker is None:
            self.warn_if_untold()
            self._tell_of_break()
            self._place, self._cells[Cell.NUM_READERS] = None, ACCELERATE
            if accelerated.active_loader(self) is None:
                follow, num_ranks = self._follow, accelerated.ITS_OWN  # also after a loop of Accelerate's
                self._cells[Cell.NUM_READERS] = 0
        resumed = None if worker is None else self._resumed

        def read(job: ReadJob, first: int, step: int) -> StreamIterator:
            return StreamIterator(job, self.finish, self.next_place, first, step, follow, resumed)

        if num_ranks != accelerated.ITS_OWN:
            return accelerated.in_turn(self.job, num_ranks, (worker_index, num_workers), read)
        return read(self.job, worker_index, num_workers)

    def warn_if_untold(self) -> None:
        """Log a warning in a process that seems to be one of several, of which nobody says which it is."""
        if self.finds_world:
            log_untold_rank(self.job.url, self.job.world)

    def _tell_of_break(self) -> None:
        """Say, the first time, that a loop which broke off is not gone on with."""
        stopped = self._place
        if stopped is not None and stopped.position and not self._has_told_of_break:
            self._has_told_of_break = True
            log_break(self.job, stopped, self.next_place, "stream")

    def _follow(self, place: Place) -> None:
        epoch, position = self.cursor
        if position and place[:2] == (epoch + 1, 0):  # a loaded rest has run out, and is not to come again
            self.set_place(Place(epoch, 0))
        self._place, self._is_loaded = place, False

    def _resumed(self, place: Place) -> None:
        """A StatefulDataLoader goes on in its workers, and iterations behind that begin at `place`, if nobody says."""
        if not self._cells[Cell.IS_SET]:
            self._cells[: Cell.NUM_GIVEN] = torch.tensor(place[:2], dtype=torch.int64)
