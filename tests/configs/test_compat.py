"""The calls around OptimizedEpisodicDataset, as the document of the old system shows them."""

import pytest
import torch
from of_users import Told

import epistream as es
from epistream.errors import OptionError

CAMERAS = ["top", "angle"]


@pytest.fixture(scope="module")
def paths(example_data):
    return [str(example_data / "aloha" / f"episode_{number}.hdf5") for number in range(2)]


@pytest.fixture(scope="module")
def optimizer(paths):
    return es.DatasetOptimizer(paths, CAMERAS, batch_size=8, chunk_size=4, seconds=0.05)


def places(batches):
    return [place for b in batches for place in zip(b["episode_id"].tolist(), b["timestamp"].tolist(), strict=True)]


def test_dataloader_gives_whole_batches_and_the_dataset(paths):
    loader, dataset = es.create_optimized_dataloader(
        dataset_paths=paths, camera_names=CAMERAS, batch_size=8, num_workers=1, use_distributed=False
    )
    batch = next(iter(loader))
    assert isinstance(dataset, es.OptimizedEpisodicDataset)
    assert {key: tuple(batch[key].shape) for key in ("image", "state", "action", "is_pad")} == {
        "image": (8, 2, 3, 480, 640),
        "state": (8, 14),
        "action": (8, 16, 14),
        "is_pad": (8, 16),
    }
    assert batch["image"].dtype == torch.uint8


def test_dataloader_follows_set_epoch_and_shows_every_window_once(paths):
    loader, dataset = es.create_optimized_dataloader(paths, ["top"], batch_size=20, num_workers=0, chunk_size=2)
    epochs = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        epochs.append(places(loader))
    assert sorted(epochs[0]) == sorted(epochs[1]) == [(e, t) for e, n in enumerate((80, 60)) for t in range(n)]
    assert epochs[0] == epochs[2] != epochs[1]
    assert len(dataset) == 140


def test_dataloader_divides_the_windows_over_the_ranks_it_finds(paths, monkeypatch):
    seen = []
    for rank in range(2):
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        loader, _ = es.create_optimized_dataloader(
            paths, ["top"], batch_size=35, num_workers=0, use_distributed=True, chunk_size=2
        )
        seen += places(loader)
        alone, _ = es.create_optimized_dataloader(paths, ["top"], batch_size=35, num_workers=0, chunk_size=2)
        assert len(alone) == 4
    assert sorted(seen) == [(e, t) for e, n in enumerate((80, 60)) for t in range(n)]


def test_dataloader_takes_a_subclass_and_options_of_both(paths):
    loader, dataset = es.create_optimized_dataloader(
        paths,
        ["top"],
        batch_size=50,
        num_workers=0,
        dataset_class=Told,
        loader_options={"shuffle": False, "drop_last": True, "pin_memory": False},
        ctrl_type="abs",
        image_size=(32, 24),
    )
    batches = list(loader)
    assert len(batches) == 2
    assert places(batches)[:3] == [(0, 0), (0, 1), (0, 2)]
    assert batches[0]["raw_lang"][0] == "complete the task"
    assert batches[0]["image"].shape == (50, 1, 3, 24, 32)
    assert isinstance(dataset, Told)


def test_auto_optimize_gives_a_configuration_that_the_dataset_and_a_loader_take(paths, optimizer, capsys, monkeypatch):
    monkeypatch.setattr("epistream.configs.compat.DatasetOptimizer", lambda *args, **options: optimizer)
    config, analysis = es.auto_optimize_dataset(dataset_paths=paths, camera_names=CAMERAS, batch_size=8)
    # The line of the document: one that names use_shared_memory itself.
    dataset = Told(dataset_path_list=paths, camera_names=CAMERAS, use_shared_memory=True, **config["optimization"])
    loader = torch.utils.data.DataLoader(dataset, batch_size=4, **{**config["dataloader"], "num_workers": 1})
    assert next(iter(loader))["image"].shape == (4, 2, 3, 480, 640)
    assert set(config) == {"optimization", "memory_mapping", "shared_memory", "dataloader", "epistream"}
    assert set(analysis) == {"system", "dataset", "prediction", "reasons", "recommendations"}
    assert "Predicted:" in capsys.readouterr().out


def test_optimizer_finds_the_cameras_that_the_old_one_did_not(optimizer):
    found = optimizer.analyze_dataset()
    assert found["cameras"] == {
        "observation.images.top": [480, 640, 3],
        "observation.images.angle": [480, 640, 3],
    }
    assert (found["num_episodes"], found["num_steps"], found["max_episode_len"]) == (2, 140, 80)
    assert found["decoded_bytes"] == 140 * 2 * 480 * 640 * 3
    assert optimizer.analyze_system()["num_cores"] >= 1


def test_optimizer_configuration_makes_streams(optimizer, paths, tmp_path):
    (tmp_path / "run.yaml").write_text(optimizer.report())
    config = es.load_config(tmp_path / "run.yaml")
    batch = next(iter(es.EpisodeStream.from_config(config, paths)))
    assert tuple(batch["action"].shape) == (8, 4, 14)
    assert es.load_config(**optimizer.optimize()["epistream"]).settings == config.settings


def test_optimizer_refuses_missing_cameras_and_impossible_batches(paths):
    with pytest.raises(OptionError, match="no camera 'front_camera'"):
        es.auto_optimize_dataset(paths, ["front_camera"])
    with pytest.raises(OptionError, match="batch_size: 0"):
        es.DatasetOptimizer(paths, CAMERAS, 0)
