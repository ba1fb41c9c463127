"""Stock loaders over a stream under Lightning and Fabric: what the page on trainers says that they lose, and keep."""

import logging

import pytest
from launching import BATCH_SIZE
from lightning.fabric import Fabric
from lightning_runs import Noting, Run, num_seen, windows_of
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import epistream as es

pytestmark = [
    pytest.mark.filterwarnings("ignore::lightning.fabric.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:Your `IterableDataset` has `__len__` defined"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),  # Lightning's own, of torch
]
FEATURES = ["action", "observation.robot0_eef_pos"]
STEP = "on_train_batch_end"


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture
def stream_of(made_grid):
    """Makes the stream of the grid."""
    return lambda: es.EpisodeStream(made_grid, batch_size=BATCH_SIZE, features=FEATURES, seed=3, split=None)


@pytest.fixture
def loader_of(stream_of):
    """Makes a loader over the stream of the grid."""
    return lambda: es.StreamingLoader(stream_of(), num_workers=0, num_threads=0)


def stock_loader(stream, workers):
    return DataLoader(stream, batch_size=None, num_workers=workers)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("workers", [0, 1])
def test_stock_dataloader_begins_the_broken_epoch_again_and_needs_to_be_told_the_epoch(
    workers, stream_of, loader_of, tmp_path
):
    run = Run(lambda: stock_loader(stream_of(), workers))
    whole = run.fit_and_save(tmp_path, (STEP,), 23)
    first = Run(loader_of).fit(tmp_path, max_epochs=1).seen
    assert whole.seen == first * 3
    assert run.fit(tmp_path, ckpt_path=tmp_path / f"023-{STEP}.ckpt").seen == first * 2

    class Telling(Noting):
        def on_train_epoch_start(self) -> None:
            self.stream.set_epoch(self.current_epoch)

    told = Telling()
    told.stream = stream_of()
    told = Run(lambda: stock_loader(told.stream, workers)).fit(tmp_path, told)
    assert told.seen == Run(loader_of).fit(tmp_path).seen


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("workers", [0, 1])
def test_statefuldataloader_loses_a_batch_at_a_resume_unless_lightning_knows_its_length(workers, stream_of, tmp_path):
    def make():
        return StatefulDataLoader(stream_of(), batch_size=None, num_workers=workers)

    for name, settings, lost in (("unknown", {}, 1), ("known", {"limit_train_batches": 18}, 0)):
        run, folder = Run(make, settings={**settings, "max_epochs": 1}), tmp_path / name
        folder.mkdir()
        whole = run.fit_and_save(folder, (STEP,), 5)
        for checkpoint in folder.glob("*.ckpt"):
            rest = run.fit(folder, ckpt_path=checkpoint).seen
            assert rest == whole.seen[num_seen(checkpoint)[0] + lost :]


@pytest.mark.parametrize("workers", [0, 1])
def test_stock_dataloader_that_fabric_sets_up_is_dealt_out_once(workers, stream_of, loader_of):
    stream, seen = stream_of(), []
    loader = Fabric(accelerator="cpu", devices=1).setup_dataloaders(stock_loader(stream, workers))
    for epoch in range(2):
        stream.set_epoch(epoch)
        seen += [windows_of(batch) for batch in loader]
    with loader_of() as reference:
        assert seen == [windows_of(batch) for _ in range(2) for batch in reference]


def test_fabric_refuses_to_set_up_a_loader_that_needs_none(loader_of):
    with pytest.raises(TypeError, match="Only PyTorch DataLoader are currently supported"):
        Fabric(accelerator="cpu", devices=1).setup_dataloaders(loader_of())
