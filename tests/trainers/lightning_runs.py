"""Runs of Lightning's Trainer in this process: one with a checkpoint wherever one likes, and one resumed from each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from torch import nn

MakeLoader = Callable[[], Any]
QUIET = {
    **{"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False},
    **{"enable_progress_bar": False, "enable_model_summary": False},
}


def windows_of(batch: Any) -> Any:
    """(episode, step) of each window, with the dataset before them in a mixture; of several loaders as they come."""
    if isinstance(batch, dict) and "step_index" not in batch:
        return {name: windows_of(each) for name, each in batch.items()}
    if isinstance(batch, list | tuple):
        return [windows_of(each) for each in batch]
    if batch is None:
        return None
    keys = [key for key in ("dataset_index", "episode_index", "step_index") if key in batch]
    return list(zip(*(batch[key].tolist() for key in keys), strict=True))


def a_batch(batches: Any) -> dict:
    """One batch of those that several loaders gave."""
    while "step_index" not in batches:
        each_of = batches.values() if isinstance(batches, dict) else batches
        batches = next(each for each in each_of if each is not None)
    return batches


class Noting(lightning.LightningModule):
    """A tiny policy that notes what its steps got, and in its checkpoints how much that was.

    Attributes:
        seen: windows of each training step.
        checked: optimizer steps before each validation step, and its windows; without those of the sanity check.
        raises_in: the training step, of this process, that fails.
    """

    def __init__(self, raises_in: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.seen, self.checked, self.raises_in = nn.Linear(3, 7), [], [], raises_in

    def training_step(self, batch: Any, batch_index: int) -> torch.Tensor:
        if len(self.seen) == self.raises_in:
            raise InterruptedError
        self.seen.append(windows_of(batch))
        return self.error(batch)

    def validation_step(self, batch: Any, batch_index: int, dataloader_idx: int = 0) -> None:
        if not self.trainer.sanity_checking:
            self.checked.append((self.trainer.global_step, windows_of(batch)))

    def error(self, batch: Any) -> torch.Tensor:
        batch = a_batch(batch)
        return ((self.net(batch["observation.robot0_eef_pos"][:, 0]) - batch["action"][:, 0]) ** 2).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["num_seen"] = len(self.seen), len(self.checked)


class SaveAt(Callback):
    """Saves a checkpoint each time Lightning calls one of these hooks, or each n-th time."""

    def __init__(self, folder: Path, hooks: Sequence[str], every: int) -> None:
        self.folder, self.every, self.num_calls = folder, every, 0
        for hook in hooks:
            setattr(self, hook, lambda trainer, *_, hook=hook: self.save(trainer, hook))

    def save(self, trainer: lightning.Trainer, hook: str) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self.num_calls += 1
            if self.num_calls % self.every == 0:
                trainer.save_checkpoint(self.folder / f"{self.num_calls:03d}-{hook}.ckpt")


@dataclass(frozen=True)
class Run:
    """How a run is set up.

    Args:
        train: makes the loader, or several.
        val: makes the validation loader.
        how: Lightning gets the loaders by "fit" (its arguments), a "module" or a "datamodule".
        settings: of Lightning's Trainer.
    """

    train: MakeLoader
    val: MakeLoader | None = None
    how: str = "fit"
    settings: dict[str, Any] = field(default_factory=dict)

    def fit(self, folder: Path, model: Noting | None = None, ckpt_path: Path | None = None, **settings: Any) -> Noting:
        """Train, from a checkpoint or from the beginning. Returns the model with its notes."""
        model = model or Noting()
        trainer = lightning.Trainer(
            **{**QUIET, "max_epochs": 3, "default_root_dir": folder, **self.settings, **settings}
        )
        trainer.fit(model, **self._loaders(model), ckpt_path=ckpt_path)
        return model

    def fit_and_save(self, folder: Path, hooks: Sequence[str], every: int = 1, **settings: Any) -> Noting:
        """Train with a checkpoint at these hooks, in the folder."""
        callbacks = [SaveAt(folder, hooks, every), *self.settings.get("callbacks", ())]
        return self.fit(folder, **{**settings, "callbacks": callbacks})

    def _loaders(self, model: Noting) -> dict[str, Any]:
        if self.how == "fit":
            return {"train_dataloaders": self.train(), "val_dataloaders": self.val() if self.val else None}
        target = model if self.how == "module" else lightning.LightningDataModule()
        target.train_dataloader = self.train
        if self.val:
            target.val_dataloader = self.val
        return {} if self.how == "module" else {"datamodule": target}


def num_seen(checkpoint: Path) -> tuple[int, int]:
    """Training and validation steps of the run that saved this, until then."""
    return torch.load(checkpoint, weights_only=False)["num_seen"]


def differences(run: Run, folder: Path, whole: Noting) -> list[str]:
    """Checkpoints from which a run does not go on as the whole one did, and what it did instead."""
    found = []
    for checkpoint in sorted(folder.glob("*.ckpt")):
        wanted = whole.seen[num_seen(checkpoint)[0] :]
        resumed = run.fit(folder, ckpt_path=checkpoint).seen
        if resumed != wanted:
            same = next((i for i, (a, b) in enumerate(zip(resumed, wanted, strict=False)) if a != b), 0)
            found.append(f"{checkpoint.name}: {len(resumed)} batches, wanted {len(wanted)}, the first {same} are equal")
    return found
