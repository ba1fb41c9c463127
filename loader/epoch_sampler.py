"""What trainers call to say which epoch they are in."""

import logging
from collections.abc import Callable, Iterator

from torch.utils.data import DistributedSampler, SequentialSampler

from epistream.loader.iteration import Iteration
from epistream.loader.state import Place
from epistream.loader.stream_base import Stream

logger = logging.getLogger(__name__)


class EpochSampler(DistributedSampler[int]):
    """The sampler of a loader that needs none: it passes on the epoch.

    By its class trainers see that the windows are dealt to ranks already, and put no sampler of theirs in its place.

    Args:
        stream: of the loader.
        set_epoch: of the loader.
        last: the iteration that the loader began last.
    """

    def __init__(
        self, stream: Stream, set_epoch: Callable[[int], None], last: Callable[[], Iteration | None] = lambda: None
    ) -> None:
        self._stream, self._set_epoch, self._last = stream, set_epoch, last

    def __iter__(self) -> Iterator[int]:
        """Numbers of the batches of an epoch."""
        return iter(range(len(self)))

    def __len__(self) -> int:
        """Batches of an epoch on this rank."""
        return self._stream.job.schedule(self._stream.cursor[0], 0).num_batches

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of `epoch`, unless a state was loaded that is farther.

        Trainers set the epoch after they have loaded a state, and of two loaders the shorter one may be in its next
        lap. One that has just ended the epoch gives nothing in it, see `Stream.set_epoch`.
        """
        loaded = self._stream.loaded_place
        if loaded is not None and loaded.epoch > epoch and loaded[:2] != (epoch + 1, 0):
            return
        if loaded is not None and loaded.epoch == epoch:
            self._warn_of_other_batches(loaded)
        self._warn_of_one_batch(epoch)
        self._set_epoch(epoch)

    def _warn_of_other_batches(self, loaded: Place) -> None:
        """Whoever sets the epoch after a resume counts batches, too; plain loops do neither."""
        size = self._stream.job.batch_size * self._stream.job.world.size
        if loaded.num_given and loaded.num_given * size != loaded.position:
            logger.warning(
                "%s: epoch %d goes on at window %d, after %d batches, with batches of %d windows over all ranks. A "
                "trainer that counts on from %d may end this epoch early; for Lightning's add "
                "epistream.integrations.lightning.ResumeAnywhere() to the callbacks.",
                *(self._stream.job.url, loaded.epoch, loaded.position, loaded.num_given, size, loaded.num_given),
            )

    def _warn_of_one_batch(self, epoch: int) -> None:
        """What Lightning 2.6 makes, with ``max_steps``, of the epoch after a checkpoint of an epoch's end."""
        last = self._last()
        if last is not None and last.is_resumed and last.cursor == (epoch - 1, 0) and last.gave_one_of:
            logger.warning(
                "%s: epoch %d was ended after 1 of its %d batches, right after a resume from the end of the epoch "
                "before. If that was Lightning's Trainer with max_steps, resume that checkpoint again with "
                "epistream.integrations.lightning.ResumeAnywhere() among the callbacks.",
                *(self._stream.job.url, epoch - 1, last.gave_one_of),
            )


class InOrderSampler(EpochSampler, SequentialSampler):
    """The same of a stream that is not shuffled: trainers look at the type before they repeat its first batches."""


def make_sampler(
    stream: Stream, set_epoch: Callable[[int], None], last: Callable[[], Iteration | None]
) -> EpochSampler:
    """The sampler of a loader. In a mixture no epoch begins as the one before, shuffled or not."""
    parts = stream.job.parts
    is_in_order = len(parts) == 1 and not parts[0].plan.options.shuffle
    return (InOrderSampler if is_in_order else EpochSampler)(stream, set_epoch, last)
