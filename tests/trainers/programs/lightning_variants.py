"""Lightning's Trainer with a strategy that the job names, and loaders that are made before it knows its ranks."""

import json
import logging
import sys
import warnings
from dataclasses import fields
from pathlib import Path

import lightning
from common import Job, make_stream, write_windows
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_trainer import Cloning

import epistream as es
from epistream.integrations.lightning import ResumeAnywhere


class Checked(Cloning):
    """It validates, too, and writes its note itself: spawned ranks do not come back."""

    train_dataloader = lightning.LightningModule.train_dataloader

    def validation_step(self, batch: dict, batch_index: int) -> None:
        self.checked = batch["step_index"]

    def on_train_end(self) -> None:
        write_windows(self.job, self.global_rank, self.seen)


def main() -> None:
    told = json.loads(Path(sys.argv[1]).read_text())
    job = Job(**{field.name: told[field.name] for field in fields(Job)} | {"out": Path(told["out"])})
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    saver = ModelCheckpoint(job.out, "stopped", every_n_train_steps=job.stop) if job.stop else ResumeAnywhere()
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=job.ranks,
        strategy=told["strategy"],
        max_epochs=job.epochs,
        max_steps=job.stop or -1,
        val_check_interval=4,
        callbacks=[saver],
        logger=False,
        enable_checkpointing=job.stop is not None,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = [
        es.StreamingLoader(make_stream(job, batch_size=told["batch_size"]), num_workers=job.workers),
        es.StreamingLoader(make_stream(job, shuffle=False), num_workers=0),
    ]
    trainer.fit(Checked(job), *loaders, ckpt_path=job.out / "stopped.ckpt" if job.resume else None)


if __name__ == "__main__":
    main()
