"""Validation: every window of a split exactly once over all ranks, and means that count no repeat."""

import json
import os
import runpy
import subprocess
import sys
from collections import Counter
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import epistream as es
from epistream.errors import OptionError

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "validate.py"
LENGTHS = (80, 60)
EVERY_WINDOW = Counter((e, t) for e, length in enumerate(LENGTHS) for t in range(length))
DEADLINE_S = 150


@pytest.fixture(scope="module")
def divided(aloha_files, tmp_path_factory):
    """Shards of which one of two episodes is for validation."""
    folder = tmp_path_factory.mktemp("divided") / "shards"
    es.pack(list(map(str, aloha_files)), folder, shard_size="1MiB", val_fraction=0.5)
    return folder


def validation(source, **options):
    given = {"split": None, "features": ["action"], "validation": True}
    return es.EpisodeStream(source, **{**given, **options})


def pairs(batch):
    return zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True)


def counted(batches):
    """Windows that are no repeats."""
    return Counter(w for b in batches for w, again in zip(pairs(b), b["is_repeat"].tolist(), strict=True) if not again)


def value_of(batch):
    """A number of each window that no float sum gives exactly."""
    return 1 / (1.0 + 100 * batch["episode_index"].double() + batch["step_index"])


@pytest.mark.parametrize("batch_size", [1, 7, 64, 200])
def test_ranks_together_count_every_window_once_in_equally_many_batches(source, batch_size):
    for world in [(1, 1), (2, 2), (3, 1), (4, 2), (8, 8)]:
        streams = [validation(source, batch_size=batch_size, world=es.World.of(r, *world)) for r in range(world[0])]
        ranks = [list(stream) for stream in streams]
        assert counted(batch for batches in ranks for batch in batches) == EVERY_WINDOW
        assert {len(batches) for batches in ranks} == {-(-140 // (batch_size * world[0]))}
        assert {len(batch["step_index"]) for batches in ranks for batch in batches} == {batch_size}
        assert {stream.num_windows for stream in streams} == {140}


def test_validation_is_in_the_order_of_the_dataset_whatever_shuffle_says(source):
    for options in ({}, {"shuffle": True, "seed": 5}, {"order": es.OrderOptions(lanes=2)}, {"remainder": "drop"}):
        batches = list(validation(source, batch_size=30, **options))
        assert [w for batch in batches for w in pairs(batch)][:140] == sorted(EVERY_WINDOW)
        assert torch.cat([batch["is_repeat"] for batch in batches]).tolist() == [False] * 140 + [True] * 10


@pytest.mark.parametrize("workers", [{"num_workers": 0}, {"num_workers": 2}, {"num_workers": 0, "num_threads": 0}])
def test_every_pass_of_a_loader_is_a_whole_validation_also_behind_a_break(source, workers):
    with es.StreamingLoader(validation(source, batch_size=48), **workers) as loader:
        for _ in range(2):
            assert counted(loader) == EVERY_WINDOW
            next(iter(loader))


def test_validation_in_workers_of_a_stock_data_loader_counts_every_window_once(aloha_shards):
    assert counted(DataLoader(validation(aloha_shards, batch_size=48), batch_size=None, num_workers=2)) == EVERY_WINDOW


def test_validation_resumed_on_other_ranks_counts_the_rest_once(source):
    first = [
        es.StreamingLoader(validation(source, batch_size=9, world=es.World.of(r, 3)), num_workers=0) for r in (0, 1, 2)
    ]
    begun = [next(iter(loader)) for loader in first]
    state = first[0].state_dict()
    for loader in first:
        loader.close()
    rest = []
    for rank in range(2):
        with es.StreamingLoader(validation(source, batch_size=20, world=es.World.of(rank, 2)), num_workers=0) as loader:
            loader.load_state_dict(state)
            rest += list(loader)
    assert counted(begun + rest) == EVERY_WINDOW
    assert sum(batch["is_repeat"].sum() for batch in rest) == 3 * 40 - (140 - 27)


@pytest.mark.parametrize("name", ["diffusion_policy", "lerobot", "ilstudio", es.ActFormat(marks_repeats=True)])
def test_formats_keep_the_marks(aloha_shards, name):
    stream = validation(aloha_shards, batch_size=90, features=None, sample_format=name)
    batches = list(stream)
    marks = torch.cat([batch["is_repeat"] if isinstance(batch, dict) else batch[4] for batch in batches])
    assert marks.tolist() == [False] * stream.num_windows + [True] * (180 - stream.num_windows)


def test_act_format_that_marks_repeats_has_five_items_where_there_are_none_too(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=20, sample_format=es.ActFormat(marks_repeats=True))
    assert [item.shape[0] for item in next(iter(stream))] == [20] * 5
    assert not next(iter(stream))[4].any()


def test_validation_reads_the_split_val_unless_another_is_named(divided):
    [val] = [name for name in {tuple(es.open_dataset(divided).splits)}]
    assert val == ("train", "val")
    lengths = []
    for split in ("auto", "val", "train", None):
        stream = validation(divided, split=split, batch_size=17)
        assert max(counted(stream).values()) == 1
        lengths.append(len(counted(stream)))
    assert lengths[0] == lengths[1]
    assert lengths[2:] == [140 - lengths[0], 140]


def test_bad_shard_that_is_skipped_is_not_counted(aloha_shards_copy):
    shard = sorted(aloha_shards_copy.glob("*.tar"))[0]
    shard.write_bytes(shard.read_bytes()[:2048])
    batches = list(validation(aloha_shards_copy, batch_size=32, on_bad="skip", cache="off"))
    assert 0 < sum(counted(batches).values()) == len(counted(batches)) < 140


def test_mean_over_windows_is_exact_for_any_batches(aloha_shards):
    exact = sum(Fraction(1 / (1.0 + 100 * e + t)) for e, t in EVERY_WINDOW) / 140
    for batch_size in (1, 3, 64, 150):
        mean = es.WindowMean()
        for batch in validation(aloha_shards, batch_size=batch_size):
            mean.add(batch, value=value_of(batch), is_first=batch["step_index"] == 0)
        assert mean.over_all_ranks() == ({"value": float(exact), "is_first": 2 / 140}, 140)


def test_mean_of_what_is_no_number_says_so():
    marks = {"is_repeat": torch.tensor([False, False, True])}
    for values, expected in [([1, np.inf, 0], np.inf), ([np.inf, -np.inf, 0], np.nan), ([1, 2, np.nan], 1.5)]:
        mean = es.WindowMean()
        mean.add(marks, loss=torch.tensor(values))
        np.testing.assert_equal(mean.over_all_ranks().values, {"loss": expected})


@pytest.mark.parametrize(
    ("batch", "values", "message"),
    [
        ({"action": torch.zeros(2)}, {"loss": torch.zeros(2)}, "without 'is_repeat'"),
        (torch.zeros(2), {"loss": torch.zeros(2)}, "without 'is_repeat'"),
        ({"is_repeat": torch.zeros(2, dtype=torch.bool)}, {"loss": torch.tensor(0.0)}, r"loss of shape \(\)"),
        (
            {"is_repeat": torch.zeros(2, dtype=torch.bool)},
            {"loss": torch.zeros(2, 4)},
            r"shape \(2, 4\), wanted \(2,\)",
        ),
        ({"is_repeat": torch.zeros(2, dtype=torch.bool)}, {"other": torch.zeros(2)}, "other, wanted loss"),
        ({"is_repeat": torch.zeros(2, dtype=torch.bool)}, {}, "no values"),
    ],
)
def test_what_cannot_be_counted_is_refused_and_counts_nothing(batch, values, message):
    mean = es.WindowMean()
    mean.add({"is_repeat": torch.tensor([False, True])}, loss=torch.tensor([1.0, 5.0]))
    with pytest.raises(OptionError, match=message):
        mean.add(batch, **values)
    assert mean.over_all_ranks() == ({"loss": 1.0}, 1)


def test_batch_that_is_refused_for_its_second_value_counts_nothing_of_the_first():
    mean, batch = es.WindowMean(), {"is_repeat": torch.tensor([False, True])}
    with pytest.raises(OptionError, match=r"error of shape \(\)"):
        mean.add(batch, loss=torch.tensor([7.0, 7.0]), error=torch.tensor(1.0))
    mean.add(batch, loss=torch.tensor([1.0, 5.0]), error=torch.tensor([2.0, 5.0]))
    assert mean.over_all_ranks() == ({"loss": 1.0, "error": 2.0}, 1)


def test_marks_that_a_transform_made_numbers_of_count_as_marks():
    mean = es.WindowMean()
    mean.add({"is_repeat": torch.tensor([0, 1, 1])}, loss=torch.tensor([1.0, 5.0, 5.0]))
    assert mean.over_all_ranks() == ({"loss": 1.0}, 1)


def test_example_on_two_ranks_has_the_mean_of_one_process(divided, aloha_files, tmp_path, monkeypatch, capsys):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    (tmp_path / "two").mkdir()
    job = subprocess.run(
        [*command, str(EXAMPLE), str(divided), str(tmp_path / "two")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert job.returncode == 0, job.stderr
    ranks = [json.loads((tmp_path / "two" / f"rank-{rank}.json").read_text()) for rank in range(2)]
    monkeypatch.setattr(sys, "path", [str(EXAMPLE.parent), *sys.path])
    runpy.run_path(str(EXAMPLE))["main"](str(divided), str(tmp_path))
    alone = json.loads((tmp_path / "rank-0.json").read_text())

    [episode] = {e for windows, _ in alone["windows"] for e, _ in windows}
    with h5py.File(aloha_files[episode]) as file:
        action, state = np.float32(file["action"]), np.float32(file["observations/qpos"])
    length = len(action)
    assert f"over {length} of {length} windows" in capsys.readouterr().out
    chunk = action[np.minimum(np.arange(length)[:, None] + np.arange(8), length - 1)]
    still = np.square(np.float64(state[:, None] - chunk)).mean()
    for found in (alone, *ranks):
        given = [
            (*window, again)
            for windows, marks in found["windows"]
            for window, again in zip(windows, marks, strict=True)
        ]
        found["counted"] = Counter(step for _, step, again in given if not again)
        assert found["num_windows"] == length
        assert found["values"]["error_of_standing_still"] == alone["values"]["error_of_standing_still"]
        assert found["values"] == pytest.approx(alone["values"], rel=1e-6)
    assert alone["values"]["error_of_standing_still"] == pytest.approx(still, rel=1e-6)
    assert len(ranks[0]["windows"]) == len(ranks[1]["windows"]) == -(-length // 20)
    assert alone["counted"] == ranks[0]["counted"] + ranks[1]["counted"] == Counter(range(length))
