"""Lightning: a callback for resumes where Lightning's own count of batches would cut an epoch short."""

from typing import Any, TypeGuard

from lightning.pytorch import Callback, LightningModule, Trainer

from epistream.loader.loader import StreamingLoader
from epistream.loader.state import Place


class ResumeAnywhere(Callback):
    """Sets Lightning's count of an epoch's batches right after a resume, by where its streams are.

    Lightning saves and restores a `StreamingLoader` by itself, and needs no callback for that. But it goes on counting
    batches from where it was, which is wrong in these cases:

    | resumed                                                   | without this callback                            |
    | --------------------------------------------------------- | ------------------------------------------------ |
    | on another number of ranks, or with another batch size    | the broken epoch may lose its last batches       |
    | with ``max_steps``, from a checkpoint of an epoch's end   | the next epoch has one batch                     |
    | from a checkpoint written within a step, as at exceptions | the batch of that step is left out               |

    It has no state: ``Trainer(callbacks=[ResumeAnywhere()])`` at the resume is enough.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the batches of the epoch at hand; the states are loaded by now, and no batch was read."""
        loop = trainer.fit_loop
        combined = loop._combined_loader
        loaders = [] if combined is None else [each for each in combined.flattened if _is_loaded(each)]
        if combined is None or not loop.is_resuming or not loaders:
            return
        batches = loop.epoch_loop.batch_progress
        epochs: Any = loop.epoch_progress.current  # of kinds of counters that Lightning does not annotate
        current: Any = batches.current
        epoch: int = epochs.processed
        has_ended = loop.restarted_on_epoch_end
        if has_ended:
            # The epoch had ended, but was not counted as completed yet when its checkpoint was written.
            loop.epoch_progress.increment_completed()
            loop.reset_restart_stage()
        elif current.ready > current.processed:
            for loader in loaders:
                _go_back(loader, epoch, current.ready, current.processed)
        # The loader that decides where an epoch ends.
        decisive = (min if combined._mode == "min_size" else max)(loaders, key=len)
        num_done = 0 if has_ended else _num_done(decisive, epoch)
        # Lightning counts the last batch itself where the checkpoint was written at its end.
        is_to_count = loop.epoch_loop.restarted_on_train_batch_end
        if num_done is not None and num_done != current.completed + is_to_count:
            current.ready = current.started = current.processed = num_done
            current.completed = num_done - is_to_count
            batches.is_last_batch = False
        for loader in loaders:
            if num_done == 0:  # a shorter loader was in a later lap
                loader.stream.set_epoch(epoch, 0)
            else:  # nothing to warn of
                loader.stream.set_place(Place(*loader.stream.cursor, None), is_loaded=True)


def _is_loaded(loader: object) -> TypeGuard[StreamingLoader]:
    return isinstance(loader, StreamingLoader) and loader.stream.loaded_place is not None


def _num_done(loader: StreamingLoader, epoch: int) -> int | None:
    """Batches of the epoch, of those that this rank gets now, that need not come; None if it has ended."""
    now = loader.stream.cursor[0]
    if now > epoch:
        return None
    return len(loader) - loader.num_batches if now == epoch else 0


def _go_back(loader: StreamingLoader, epoch: int, num_given: int, num_trained: int) -> None:
    """Let batches that were given, but not trained on, come again; nothing where batches were others then."""
    schedule = loader.stream.job.schedule(epoch, 0)
    if loader.stream.cursor == schedule.after(num_given):
        loader.stream.set_place(Place(*schedule.after(num_trained), num_trained), is_loaded=True)
