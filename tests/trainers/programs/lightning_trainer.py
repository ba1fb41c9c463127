"""Lightning's Trainer: ``trainer.fit`` over a StreamingLoader, checkpoints by ModelCheckpoint and ``ckpt_path``."""

import logging
import warnings

import lightning
import torch
from common import Job, error_of, make_model, make_stream, read_job, windows_of, write_windows
from lightning.pytorch.callbacks import ModelCheckpoint

import epistream as es

BATCHES_AN_EPOCH = {1: 18, 2: 9}
NAME = "stopped"


class Cloning(lightning.LightningModule):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job, self.net, self.seen = job, make_model(), []

    def train_dataloader(self) -> es.StreamingLoader:
        return es.StreamingLoader(make_stream(self.job), num_workers=self.job.workers)

    def training_step(self, batch: dict, batch_index: int) -> torch.Tensor:
        self.seen.append(windows_of(batch))
        return error_of(self.net, batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


def limits(job: Job) -> dict:
    """When training ends and what saves its checkpoint, by Lightning's means for the middle and the end of an epoch."""
    if job.stop is None:
        return {"max_epochs": job.epochs, "enable_checkpointing": False}
    folder = {"dirpath": job.out, "filename": NAME}
    num_epochs, in_epoch = divmod(job.stop, BATCHES_AN_EPOCH[job.ranks])
    if in_epoch == 0:
        return {"max_epochs": num_epochs, "callbacks": [ModelCheckpoint(**folder, save_on_train_epoch_end=True)]}
    return {"max_steps": job.stop, "callbacks": [ModelCheckpoint(**folder, every_n_train_steps=job.stop)]}


def main() -> None:
    job = read_job()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=job.ranks,
        strategy="ddp" if job.ranks > 1 else "auto",
        default_root_dir=job.out,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **limits(job),
    )
    model = Cloning(job)
    trainer.fit(model, ckpt_path=job.out / f"{NAME}.ckpt" if job.resume else None)
    write_windows(job, trainer.global_rank, model.seen)


if __name__ == "__main__":
    main()
