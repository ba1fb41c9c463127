"""Behaviour cloning with Lightning: two ranks, checkpoints, and going on from the last one.

    python examples/bc_lightning.py SHARDS OUT [NUM_STEPS]

Lightning starts the second rank itself. Its checkpoints hold where the loader is: started again after it was ended, in
the middle of an epoch or not, the script goes on with the windows that were not trained on.
"""

import json
import logging
import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from policy import Policy, inputs, make_stream, windows_of

import epistream as es


class Cloning(lightning.LightningModule):
    def __init__(self, shards: str) -> None:
        super().__init__()
        self.policy = Policy(shards)
        self.losses, self.windows = [], []

    def training_step(self, batch: dict, batch_index: int) -> torch.Tensor:
        loss = self.policy.error(batch, self.policy(*inputs(batch)))
        self.losses.append(loss.item())
        self.windows.append(windows_of(batch))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.policy.parameters(), lr=3e-3)


def main(shards: str, out: str, num_steps: int = -1, num_epochs: int = 5) -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.manual_seed(0)
    last = Path(out, "last.ckpt")
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=num_epochs,
        max_steps=num_steps,
        callbacks=[ModelCheckpoint(out, every_n_train_steps=4, save_last=True)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Cloning(shards)
    # Made before Lightning tells which rank this is: the stream asks for that when it is used.
    with es.StreamingLoader(make_stream(shards), num_workers=1) as loader:
        trainer.fit(model, loader, ckpt_path=last if last.exists() else None)
    report = {"losses": model.losses, "windows": model.windows}
    Path(out, f"rank-{trainer.global_rank}.json").write_text(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:3], *map(int, sys.argv[3:]))
