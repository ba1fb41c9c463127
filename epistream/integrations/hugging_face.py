"""The Hugging Face Trainer over streams: every rank reads its own windows, and a checkpoint says where the run is."""

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Dataset
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from epistream.errors import StateError
from epistream.loader.loader import StreamingLoader
from epistream.loader.samples.window_mean import WindowMean
from epistream.loader.state import Place, check_state
from epistream.loader.stream_base import Stream


class StreamCallback(TrainerCallback, ExportableState):
    """Saves where a `StreamingLoader` is in every checkpoint of a Trainer, and restores it.

    The state is part of ``trainer_state.json``, which the Trainer writes last and cannot resume without: a run that is
    killed at any line leaves a checkpoint in which model and data stand at the same step, or none that it resumes from.

    For Trainers whose ``get_train_dataloader`` returns a `StreamingLoader`; `StreamTrainerMixin` brings it along.
    Checkpoints that were saved without it are resumed by the Trainer's own count of steps.
    """

    def __init__(self) -> None:
        self._loader: StreamingLoader | None = None  # that the Trainer trains on

    def state(self) -> dict[str, Any]:
        """Where the training is; asked for by the Trainer, which writes it as JSON."""
        return {"args": {}, "attributes": {} if self._loader is None else {"place": self._loader.state_dict()}}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: Any = None,
        **_: Any,
    ) -> None:
        """Restore where the checkpoint was saved, if the Trainer resumes from one.

        Raises:
            StateError: the Trainer would go on at another batch than the one that the checkpoint was saved before,
                because the number of ranks, the batch size or the accumulation of gradients is another one; or it is of
                another stream.
        """
        self._loader = train_dataloader if isinstance(train_dataloader, StreamingLoader) else None
        name = type(self).__name__
        states = cast(dict[str, Any], state.stateful_callbacks)
        saved = states.get(name) or {}
        states[name] = self.state()  # the Trainer puts later ones in its place
        attributes = saved.get("attributes") if isinstance(saved, Mapping) else saved
        place = attributes.get("place") if isinstance(attributes, Mapping) else attributes
        if self._loader is None or place is None or state.global_step == 0:
            return
        self._check_count(args, state, check_state(self._loader.stream.job, place))
        self._loader.load_state_dict(place)

    def _check_count(self, args: TrainingArguments, state: TrainerState, place: Place) -> None:
        """Whether the Trainer, which counts steps, comes to the same batch as the state."""
        assert self._loader is not None
        job = self._loader.stream.job
        steps = -(-len(self._loader) // args.gradient_accumulation_steps)
        epoch, steps_of_epoch = divmod(state.global_step, steps)
        schedule = job.schedule(epoch, 0)
        position = schedule.position_after(steps_of_epoch * args.gradient_accumulation_steps - 1)
        if (epoch, position) != (place.epoch, place.position):
            raise StateError(
                f"checkpoint at step {state.global_step}: saved after {place.position} windows of epoch "
                f"{place.epoch}, but for this run, of {job.world.size} ranks x {job.batch_size} windows x "
                f"{args.gradient_accumulation_steps} batches a step, that step comes after {position} windows of epoch "
                f"{epoch}. Resume with the numbers of the run that saved it."
            )


class StreamTrainerMixin:
    """A Trainer that takes streams: ``class MyTrainer(StreamTrainerMixin, Trainer)``.

    ``train_dataset`` and ``eval_dataset`` may be streams, or `StreamingLoader` objects to choose everything of them.
    Every rank reads its own windows, ``num_train_epochs`` works, and a run resumes at the very batch
    (`StreamCallback`). A stream is read by ``dataloader_num_workers`` processes. What the Trainer says of batches is
    the stream's to say: batch sizes, collators and ``remove_unused_columns`` have no effect. Each evaluation gets the
    windows of epoch 0. Of a stream with ``validation=True`` the loss of an evaluation is the mean over its windows, in
    which repeats do not count.
    """

    _mean: WindowMean | None = None  # of the losses of the evaluation under way

    def __init__(
        self,
        model: Any = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        *others: Any,
        **options: Any,
    ) -> None:
        num_workers = 0 if args is None else args.dataloader_num_workers
        if isinstance(eval_dataset, Mapping):
            eval_dataset = {name: _loader_of(each, num_workers) for name, each in eval_dataset.items()}
        else:
            eval_dataset = _loader_of(eval_dataset, num_workers)
        train_dataset = _loader_of(train_dataset, num_workers)
        given = (model, args, data_collator, train_dataset, eval_dataset, *others)
        super().__init__(*given, **options)
        if not any(isinstance(each, StreamCallback) for each in self.callback_handler.callbacks):  # type: ignore[attr-defined]
            self.add_callback(StreamCallback())  # type: ignore[attr-defined]

    def get_train_dataloader(self) -> Any:
        """The loader of the training stream, at its beginning; else as the Trainer's."""
        loader = self._from_begin(self.train_dataset)  # type: ignore[attr-defined]
        return super().get_train_dataloader() if loader is None else loader  # type: ignore[misc]

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """The loader of an evaluation stream, at its beginning; else as the Trainer's."""
        chosen = self.eval_dataset if eval_dataset is None else eval_dataset  # type: ignore[attr-defined]
        if isinstance(chosen, str):
            chosen = self.eval_dataset[chosen]  # type: ignore[attr-defined]
        loader = self._from_begin(chosen)
        return super().get_eval_dataloader(eval_dataset) if loader is None else loader  # type: ignore[misc]

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """The loader of a stream to predict for, at its beginning; else as the Trainer's."""
        loader = self._from_begin(test_dataset)
        return super().get_test_dataloader(test_dataset) if loader is None else loader  # type: ignore[misc]

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """The Trainer's, whose loss counts every window once where batches mark repeats."""
        self._mean = None
        given = (dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        output = super().evaluation_loop(*given)  # type: ignore[misc]
        if self._mean is not None:
            output.metrics[f"{metric_key_prefix}_loss"] = self._mean.over_all_ranks().values["loss"]
        return output

    def prediction_step(
        self, model: Any, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> Any:
        """The Trainer's, whose loss is that of the windows that are no repeats."""
        step = super().prediction_step  # type: ignore[misc]
        marks = inputs.get("is_repeat") if isinstance(inputs, Mapping) else None
        if marks is None:
            return step(model, inputs, prediction_loss_only, ignore_keys)
        # A rank with nothing but repeats goes through the model all the same: others may wait for it in there.
        once = inputs if marks.all() or not marks.any() else _rows(inputs, ~marks)
        result = step(model, inputs if not prediction_loss_only else once, prediction_loss_only, ignore_keys)
        loss = result[0]
        if not prediction_loss_only:
            accelerator, device = self.accelerator, self.args.device  # type: ignore[attr-defined]
            if accelerator.gather(marks.any().to(device)[None]).any():  # one more pass, for all ranks or none
                loss = step(model, once, True, ignore_keys)[0]
        if loss is not None:
            self._mean = self._mean or WindowMean()
            self._mean.add(inputs, loss=loss.expand(len(marks)))
        return loss, *result[1:]

    def _from_begin(self, dataset: Any) -> StreamingLoader | None:
        loader = _loader_of(dataset, self.args.dataloader_num_workers)  # type: ignore[attr-defined]
        if not isinstance(loader, StreamingLoader):
            return None
        loader.set_place(Place(0, 0))
        return loader


def _rows(values: Any, keep: Tensor) -> Any:
    """The rows of a batch, or of what is in it, that are to be kept."""
    if isinstance(values, Mapping):
        return {name: _rows(value, keep) for name, value in values.items()}
    if isinstance(values, Tensor):
        return values[keep.to(values.device)]
    if isinstance(values, list | tuple) and len(values) == len(keep):
        return [value for value, is_kept in zip(values, keep.tolist(), strict=True) if is_kept]
    return values


def _loader_of(dataset: Dataset[Any] | Stream | StreamingLoader | None, num_workers: int) -> Any:
    """A stream in a loader; anything else as it is."""
    return StreamingLoader(dataset, num_workers=num_workers) if isinstance(dataset, Stream) else dataset
