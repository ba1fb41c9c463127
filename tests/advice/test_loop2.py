"""Advice of streams and loaders about validation, splits and waiting, taken."""

import re
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from torch import distributed

import epistream as es
from epistream.commands import cli
from epistream.errors import DeadlineError, OptionError
from epistream.loader import stream as stream_module


def validation(source, **options):
    return es.EpisodeStream(source, **{"features": ["action"], "validation": True, "batch_size": 48, **options})


def num_counted(stream):
    mean = es.WindowMean()
    for batch in stream:
        mean.add(batch, step=batch["step_index"])
    return mean.over_all_ranks().num_windows


def test_stream_without_a_split_to_validate_on_names_three_ways(aloha_shards, aloha_files, tmp_path):
    with pytest.raises(OptionError) as caught:
        validation(aloha_shards)
    assert "Give split=None for all episodes, or divide them: val_fraction=0.1 for HDF5 files," in str(caught.value)
    assert num_counted(validation(aloha_shards, split=None)) == 140
    files = list(map(str, aloha_files))
    with pytest.raises(OptionError, match="wanted 'val' for validation"):
        validation(files)
    numbers = [num_counted(validation(files, val_fraction=0.1))]
    numbers += [es.EpisodeStream(files, features=["action"], val_fraction=0.1).num_windows]  # in the training as well
    assert sorted(numbers) == [60, 80]
    command = re.search(r"epistream (pack --val-fraction \S+)\.", str(caught.value))[1].split()
    done = CliRunner().invoke(cli, [*command, *map(str, aloha_files), str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert 0 < num_counted(validation(tmp_path / "out")) < 140


def test_stream_with_another_split_than_val_is_told_its_name(aloha_files, tmp_path, monkeypatch):
    es.pack(list(map(str, aloha_files)), tmp_path / "out", shard_size="1MiB", val_fraction=0.5)
    dataset = replace(es.open_dataset(tmp_path / "out"), splits=("train", "test"))
    monkeypatch.setattr(stream_module, "open_dataset", lambda *_, **__: dataset)
    with pytest.raises(OptionError, match=r"Give split='test', split=None for all episodes"):
        validation(tmp_path / "out")
    assert 0 < num_counted(validation(tmp_path / "out", split="test")) < 140


def test_shards_that_are_to_be_divided_name_their_splits_or_packing(aloha_shards, aloha_files, tmp_path):
    with pytest.raises(OptionError, match=r"without splits.*Pack the recordings with --val-fraction"):
        validation(aloha_shards, val_fraction=0.5)
    command = ["pack", *map(str, aloha_files), str(tmp_path / "out"), "--val-fraction", "0.5"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    with pytest.raises(OptionError, match=r"splits train, val.*Leave val_fraction out, and name a split"):
        validation(tmp_path / "out", val_fraction=0.5)
    assert num_counted(validation(tmp_path / "out", split="val")) == 80


@pytest.mark.parametrize(
    ("wrong", "advice", "right"),
    [
        ({"remainder": "uneven"}, "Give remainder='pad'.", {"remainder": "pad"}),
        ({"repetitions": [1, 2]}, "Give repetitions=None, or", {"repetitions": None}),
        (
            {"sample_format": "act", "features": None},
            r"Give sample_format=ActFormat\(marks_repeats=True\)",
            {"sample_format": es.ActFormat(marks_repeats=True), "features": None},
        ),
    ],
)
def test_options_that_no_validation_can_have_name_those_that_it_can(aloha_shards, wrong, advice, right):
    with pytest.raises(OptionError, match=advice):
        validation(aloha_shards, split=None, **wrong)
    stream = validation(aloha_shards, split=None, **right)
    mean = es.WindowMean()
    for batch in stream:
        marks = batch[4] if isinstance(batch, tuple) else batch["is_repeat"]
        mean.add({"is_repeat": marks}, one=torch.ones(48))
    assert mean.over_all_ranks().num_windows == 140


def test_mixture_of_validation_streams_names_the_loop_that_counts_each_window_once(aloha_shards, aloha_files):
    streams = [validation(source, split=None) for source in (aloha_shards, list(map(str, aloha_files)))]
    with pytest.raises(
        OptionError, match="Read each stream by a StreamingLoader of its own, one after the other, into"
    ):
        es.Mixture(streams, weights=[1, 1], batch_size=8)
    mean = es.WindowMean()
    for stream in streams:
        with es.StreamingLoader(stream, num_workers=0) as loader:
            for batch in loader:
                mean.add(batch, step=batch["step_index"])
    assert mean.over_all_ranks().num_windows == 280


def test_mean_of_a_batch_without_marks_names_the_option_that_makes_them(aloha_shards):
    mean = es.WindowMean()
    only_actions = {"sample_format": lambda batch: {"action": batch["action"]}}
    for options in ({"validation": False}, only_actions):
        batch = next(iter(validation(aloha_shards, split=None, **options)))
        with pytest.raises(OptionError, match="Make the stream with validation=True, and keep 'is_repeat' in a trans"):
            mean.add(batch, action=batch["action"][:, 0, 0])
    keeping = {"sample_format": lambda batch: {name: batch[name] for name in ("action", "is_repeat")}}
    batch = next(iter(validation(aloha_shards, split=None, **keeping)))
    mean.add(batch, action=batch["action"][:, 0, 0])


def test_mean_of_values_of_steps_names_how_to_average_them(aloha_shards):
    batch, mean = next(iter(validation(aloha_shards, split=None))), es.WindowMean()
    loss = batch["action"]
    with pytest.raises(OptionError) as caught:
        mean.add(batch, loss=loss)
    mean.add(batch, loss=eval(re.search(r"first: (.*)\.$", str(caught.value))[1], {"loss": loss}))
    with pytest.raises(OptionError, match="Give every value for every batch, or make another WindowMean"):
        mean.add(batch, other=loss[:, 0, 0])
    es.WindowMean().add(batch, other=loss[:, 0, 0])
    with pytest.raises(OptionError, match=r"Call add\(batch, \.\.\.\) for every batch before"):
        es.WindowMean().over_all_ranks()
    assert mean.over_all_ranks().num_windows == 48


def test_mean_over_ranks_that_no_process_group_joins_names_the_call(aloha_shards, monkeypatch, tmp_path):
    batch, mean = next(iter(validation(aloha_shards, split=None))), es.WindowMean()
    mean.add(batch, step=batch["step_index"])
    for name, value in {"RANK": 0, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(OptionError, match=r"Call torch.distributed.init_process_group\(\) before"):
        mean.over_all_ranks()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert mean.over_all_ranks().num_windows == 48
    finally:
        distributed.destroy_process_group()


def test_mean_of_ranks_that_added_other_values_names_what_each_added(monkeypatch):
    def gather(found, ours, group=None):
        found[:] = [ours, other]

    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_world_size", lambda group=None: 2)
    monkeypatch.setattr(distributed, "all_gather_object", gather)
    mean = es.WindowMean()
    mean.add({"is_repeat": torch.tensor([False])}, loss=torch.tensor([1.0]))
    other = {"error": 1}, {}, 1
    with pytest.raises(OptionError, match=r"error and loss on different ranks.*Add the same values on every rank"):
        mean.over_all_ranks()
    other = {"loss": 2}, {}, 1
    assert mean.over_all_ranks() == ({"loss": 1.5}, 2)


def test_batch_that_came_too_late_names_the_option_with_which_it_comes(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=4, features=["action"])
    # As long as a worker needs to start there is no batch.
    with es.StreamingLoader(stream, num_workers=1, timeout_s=1e-6) as loader:
        with pytest.raises(DeadlineError, match=r"or raise StreamingLoader\(timeout_s=...\)\.$"):
            next(iter(loader))
        assert loader.worker_pids == []
    with es.StreamingLoader(stream, num_workers=1, timeout_s=60) as loader:
        assert sum(len(batch["action"]) for batch in loader) == 140
