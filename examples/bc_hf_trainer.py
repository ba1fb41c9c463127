"""Behaviour cloning with the Hugging Face Trainer.

    torchrun --nproc-per-node 2 examples/bc_hf_trainer.py SHARDS OUT

Every rank reads its own windows. Each epoch ends with a checkpoint in OUT; started again, the script goes on from the
last one, at the very batch: checkpoints of ``save_strategy="steps"`` lie in the middle of epochs.
``StreamTrainerMixin`` sees to both.
"""

import json
import sys
from pathlib import Path

import torch
from policy import Policy, inputs, make_stream, windows_of
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from epistream.integrations.hugging_face import StreamTrainerMixin


class Cloning(torch.nn.Module):
    """The Trainer calls its model with the batch as keywords, and takes the loss from what it returns."""

    def __init__(self, shards: str) -> None:
        super().__init__()
        self.policy = Policy(shards)
        self.losses, self.windows = [], []

    def forward(self, **batch) -> dict:
        loss = self.policy.error(batch, self.policy(*inputs(batch)))
        self.losses.append(loss.item())
        self.windows.append(windows_of(batch))
        return {"loss": loss}


class StreamTrainer(StreamTrainerMixin, Trainer):
    pass


def main(shards: str, out: str, num_epochs: int = 5) -> None:
    torch.manual_seed(0)
    arguments = TrainingArguments(
        out,
        num_train_epochs=num_epochs,
        learning_rate=3e-3,
        lr_scheduler_type="constant",
        save_strategy="epoch",
        dataloader_num_workers=1,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    model = Cloning(shards)
    trainer = StreamTrainer(model, arguments, train_dataset=make_stream(shards))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(out))
    report = {"losses": model.losses, "windows": model.windows}
    Path(out, f"rank-{arguments.process_index}.json").write_text(json.dumps(report))
    # On CPUs a process group that goes with the last model that uses it may wait for ever (pytorch issue 190489).
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
