"""Behaviour cloning with Lightning.

    python examples/bc_lightning.py SHARDS OUT

Lightning starts the second rank itself. ``use_distributed_sampler=False``: the stream deals windows to ranks, and has
no sampler to replace.
"""

import json
import sys
from pathlib import Path

import lightning
import torch
from policy import Policy, inputs, make_stream, windows_of

import epistream as es


class Cloning(lightning.LightningModule):
    def __init__(self, shards: str, out: str) -> None:
        super().__init__()
        self.shards, self.out = shards, out
        self.policy = Policy(shards)
        self.losses, self.windows = [], []

    def train_dataloader(self) -> es.StreamingLoader:
        # Made here, because only now does Lightning's process group tell which rank this is.
        return es.StreamingLoader(make_stream(self.shards), num_workers=1)

    def training_step(self, batch: dict, batch_index: int) -> torch.Tensor:
        loss = self.policy.error(batch, self.policy(*inputs(batch)))
        self.losses.append(loss.item())
        self.windows.append(windows_of(batch))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.policy.parameters(), lr=3e-3)

    def on_train_end(self) -> None:
        report = {"losses": self.losses, "windows": self.windows}
        Path(self.out, f"rank-{self.global_rank}.json").write_text(json.dumps(report))


def main(shards: str, out: str, num_epochs: int = 5) -> None:
    torch.manual_seed(0)
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=num_epochs,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Cloning(shards, out))


if __name__ == "__main__":
    main(*sys.argv[1:])
