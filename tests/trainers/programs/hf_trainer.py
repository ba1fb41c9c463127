"""Hugging Face Trainer over a StreamingLoader, with the checkpoints that it writes by itself."""

from common import Job, error_of, make_model, make_stream, read_job, windows_of, write_windows
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

import epistream as es


class Cloning(nn.Module):
    """Notes the windows of each batch that a training step gets."""

    def __init__(self) -> None:
        super().__init__()
        self.model = make_model()
        self.seen = []

    def forward(self, **batch):
        self.seen.append(windows_of(batch))
        return {"loss": error_of(self.model, batch)}


class BreakOff(TrainerCallback):
    """Saves a checkpoint after some steps and ends the training."""

    def __init__(self, stop: int | None) -> None:
        self.stop = stop

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.stop:
            control.should_save = control.should_training_stop = True


class StreamTrainer(Trainer):
    def __init__(self, job: Job, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.job = job

    def get_train_dataloader(self) -> es.StreamingLoader:
        return es.StreamingLoader(make_stream(self.job), num_workers=self.job.workers)


def main() -> None:
    job = read_job()
    arguments = TrainingArguments(
        str(job.out / "checkpoints"),
        use_cpu=True,
        num_train_epochs=job.epochs,
        report_to=[],
        save_strategy="no",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    model = Cloning()
    trainer = StreamTrainer(job, model, arguments, train_dataset=range(1), callbacks=[BreakOff(job.stop)])
    trainer.train(resume_from_checkpoint=job.resume)
    write_windows(job, trainer.accelerator.process_index, model.seen)
    # A gloo group that goes with the last model that uses it may wait for ever (pytorch issue 190489).
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
