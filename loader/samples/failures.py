"""What an exception in a function of the user's was about: a note that says which batch, windows and worker."""

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any, NamedTuple, TypeVar

from numpy.typing import NDArray
from torch.utils.data import get_worker_info

from epistream.errors import WorkerError
from epistream.loader.order.world import World
from epistream.loader.reading.job import DATASET_INDEX, DatasetPart
from epistream.shown_urls import shown

T = TypeVar("T")

# More say no more about a batch, and hide the traceback above them.
_MOST_WINDOWS = 64
_MARK = "said in a worker"


class Origin(NamedTuple):
    """Where a batch comes from. Its text names every window, up to 64.

    Attributes:
        parts: the datasets of the job.
        views: the arrays of the batch: ``episode_index``, ``step_index``, and ``dataset_index`` of a mixture.
        batch: which one, in words.
    """

    parts: Sequence[DatasetPart]
    views: Mapping[str, NDArray[Any]]
    batch: str

    def kept(self) -> "Origin":
        """The same, after the memory of the batch was used again."""
        names = ("episode_index", "step_index", DATASET_INDEX)
        return self._replace(views={name: self.views[name].copy() for name in names if name in self.views})

    def __str__(self) -> str:
        episodes, steps = (self.views[name].tolist() for name in ("episode_index", "step_index"))
        datasets = self.views[DATASET_INDEX].tolist() if DATASET_INDEX in self.views else [0] * len(steps)
        by_episode: dict[tuple[int, int], list[int]] = {}
        for dataset, episode, step in list(zip(datasets, episodes, steps, strict=True))[:_MOST_WINDOWS]:
            by_episode.setdefault((dataset, episode), []).append(step)
        lines = [f"epistream: this was {self.batch}, of these windows:"]
        for (dataset, episode), own in by_episode.items():
            opened = self.parts[dataset].dataset
            url = shown(str(opened.shard_url[int(opened.episode_shard[episode])]))
            of = f"stream {dataset} of the mixture, " if len(self.parts) > 1 else ""
            plural = "s" if len(own) > 1 else ""
            lines.append(f"  {of}episode {episode} ({url}): step{plural} {', '.join(map(str, own))}")
        if len(steps) > _MOST_WINDOWS:
            lines.append(f"  and {len(steps) - _MOST_WINDOWS} more")
        stream = f"streams[{datasets[0]}]" if len(self.parts) > 1 else "stream"
        lines.append(f"To see one alone: {stream}.read(episode_index={episodes[0]}, step={steps[0]})")
        return "\n".join(lines)


def batch_text(world: World, place: tuple[int, int, int | None], batch_index: int) -> str:
    """Which batch it is, in words.

    Args:
        world: of the rank.
        place: where the pass through the epoch began: epoch, windows over all ranks, and batches if they are known.
        batch_index: batches of this pass before it.
    """
    epoch, position, num_given = place
    rank = f" on rank {world.rank} of {world.size}" if world.size > 1 else ""
    if num_given is None:
        return f"batch {batch_index} from window {position} of epoch {epoch} on{rank}"
    return f"batch {num_given + batch_index} of epoch {epoch}{rank}"


def reader_text() -> str:
    """Who reads, where nobody hands batches on: this process, or it as a worker of a DataLoader."""
    worker = get_worker_info()
    if worker is None:
        return f"this process (pid {os.getpid()})"
    return f"worker {worker.id} of {worker.num_workers} of a DataLoader (pid {os.getpid()})"


def told(function: Callable[[Any], T], argument: Any, origin: Callable[[], object], names: str) -> T:
    """What a function of the user's gives. What it raises stays what it is, with a note that says what it was about.

    Args:
        function: the function.
        argument: its argument.
        origin: gives what its text says; asked for only then.
        names: what the user calls the function, for a StopIteration: that would end the epoch early, without a word.
    """
    try:
        return function(argument)
    except StopIteration as error:
        failed = RuntimeError(f"{names} raised StopIteration")
        add_note(failed, origin)
        raise failed from error
    except Exception as error:
        add_note(error, origin)
        raise


class Finishing:
    """The functions of a user's that a loader calls on each batch, first on the host, then on the device.

    Args:
        finish: makes of arrays what a training loop gets.
        on_device: is called on that later, when other batches may have come; None for nothing.
        origin: where the batch of these arrays comes from.

    Attributes:
        hook: calls `on_device`.
    """

    def __init__(
        self,
        finish: Callable[[Any], Any],
        on_device: Callable[[Any], Any] | None,
        origin: Callable[[Mapping[str, NDArray[Any]]], Origin],
    ) -> None:
        self._finish, self._on_device, self._origin = finish, on_device, origin
        self._on_their_way: deque[Origin] = deque()
        self.hook = None if on_device is None else self._call_hook

    def finish(self, views: Mapping[str, NDArray[Any]]) -> Any:
        """What a training loop gets of the arrays of a batch."""
        batch = told(self._finish, views, partial(self._origin, views), "transform or sample_format")
        if self.hook is not None:
            self._on_their_way.append(self._origin(views).kept())
        return batch

    def _call_hook(self, batch: Any) -> Any:
        assert self._on_device is not None
        origin = self._on_their_way.popleft()
        return told(self._on_device, batch, lambda: origin, "on_device")


def add_note(error: BaseException, note: Callable[[], object]) -> None:
    """Have an exception say something more, wherever it is printed."""
    with suppress(Exception):  # it must not hide the exception
        text = str(note())
        if not hasattr(error, "add_note"):  # before Python 3.11
            if error.args and isinstance(error.args[0], str):
                error.args = (f"{error.args[0]}\n{text}", *error.args[1:])
            return
        try:
            error.add_note(text)
        except Exception:  # a class of the user's may allow no attributes
            vars(error).setdefault("__notes__", []).append(text)


def portable(error: Exception) -> Exception:
    """What a worker of a DataLoader may raise, so that the training process sees it.

    torch sends the class, by its name, and the text of the traceback, and calls the class with that. A class that
    nobody finds by its name would never arrive, and the training process would wait for ever.

    Returns:
        The exception itself; or one of the nearest of its bases with which that works, to be raised from it.
    """
    for kind in type(error).__mro__:
        if kind in (Exception, BaseException, object):
            break
        with suppress(Exception):
            # One with such an attribute is called with an argument of this name.
            is_called = not getattr(kind, "message", None) and _MARK in str(kind(_MARK))
            if is_called and ForkingPickler.loads(ForkingPickler.dumps(kind)) is kind:
                return error if kind is type(error) else kind(_text(error))
    return error if type(error) is Exception else WorkerError(_text(error))


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
