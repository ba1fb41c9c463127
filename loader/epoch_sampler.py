"""What trainers call to say which epoch they are in."""

from collections.abc import Callable

from epistream.loader.stream_base import Stream


class EpochSampler:
    """The sampler of a loader that needs none: it passes on the epoch.

    Args:
        stream: of the loader.
        set_epoch: of the loader.
    """

    def __init__(self, stream: Stream, set_epoch: Callable[[int], None]) -> None:
        self._stream, self._set_epoch = stream, set_epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of `epoch`, unless a state was loaded that is as far or farther.

        Trainers set the epoch after they have loaded a state, and their count may be behind: of two loaders the
        shorter one is in its next lap, and an epoch whose last batch was given is not over yet for them.
        """
        loaded = self._stream.loaded_place
        if loaded is None or epoch > loaded.epoch:
            self._set_epoch(epoch)
