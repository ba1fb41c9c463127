"""Advice of streams and loaders about validation, splits and waiting, taken."""

import pickle
import re
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from torch import distributed
from torch.utils.data import DataLoader

import epistream as es
from epistream.commands import cli
from epistream.errors import DeadlineError, OptionError, StateError
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
    assert "Give split=None for all episodes, or divide them: val_fraction=0.1 for HDF5 files and" in str(caught.value)
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


def stream_of(shards, **options):
    return es.EpisodeStream(shards, **{"features": ["action"], "batch_size": 20, **options})


def windows_of(batches):
    return [w for b in batches for w in zip(b["episode_index"].tolist(), b["step_index"].tolist(), strict=True)]


def test_mixture_of_something_else_names_what_it_takes(aloha_shards):
    streams = [stream_of(aloha_shards) for _ in range(2)]
    for wrong in (dict(enumerate(streams)), [aloha_shards]):
        with pytest.raises(OptionError, match="wanted a list of EpisodeStream, and a list of as many weights"):
            es.Mixture(wrong, weights=[1, 1])
    with pytest.raises(OptionError, match="2 weights for 1 datasets, wanted one each"):
        es.Mixture(streams[:1], weights=[1, 1])
    with pytest.raises(OptionError, match=r"weight 0, wanted a number above 0, or leave it out"):
        es.Mixture(streams, weights=[1, 0])
    for kept, weights in ((streams, [1, 0.5]), (streams[:1], [1])):
        assert len(next(iter(es.Mixture(kept, weights=weights, batch_size=8)))["action"]) == 8


def test_mixture_of_formatted_batches_formats_them_after_the_mixture(aloha_shards):
    def formatted(batch):
        return [batch["action"].mean()]

    streams = [stream_of(aloha_shards, sample_format=formatted) for _ in range(2)]
    with pytest.raises(OptionError, match="Format and transform the batch after the mixture"):
        next(iter(es.Mixture(streams, weights=[1, 1], batch_size=8)))
    mixture = es.Mixture([stream_of(aloha_shards) for _ in range(2)], weights=[1, 1], batch_size=8)
    with es.StreamingLoader(mixture, num_workers=0, on_device=formatted) as loader:
        assert len(next(iter(loader))) == 1


def test_configuration_that_is_none_is_loaded_and_given_a_source(aloha_shards, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("stream: {batch_size: 20}\n")
    with pytest.raises(OptionError) as caught:
        es.EpisodeStream.from_config(str(file))
    assert f"Use from_config(epistream.load_config({str(file)!r}))." in str(caught.value)
    with pytest.raises(OptionError, match="Name one here, or as 'source' in the configuration"):
        es.EpisodeStream.from_config(es.load_config(str(file)))
    assert es.EpisodeStream.from_config(es.load_config(str(file)), aloha_shards).num_windows == 140
    file.write_text(f"source: {aloha_shards}\n")
    assert es.EpisodeStream.from_config(es.load_config(str(file))).num_windows == 140


def test_window_that_is_not_there_is_found_by_the_lengths_that_the_message_names(aloha_shards):
    stream = stream_of(aloha_shards)
    with pytest.raises(OptionError, match=r"Their lengths are in open_dataset\(\.\.\.\)\.episode_length"):
        stream.read(1, 60)
    for episode, length in enumerate(es.open_dataset(aloha_shards).episode_length.tolist()):
        assert stream.read(episode, length - 1)["step_index"].item() == length - 1


def test_loader_taken_apart_in_another_order_is_iterated_itself(aloha_shards):
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=0) as loader:
        batches = loader.dataset
        assert len(batches[0]["action"]) == 20
        with pytest.raises(OptionError, match="Iterate the loader itself; nobody need deal batches to ranks"):
            batches[2]
        loader.set_epoch(0)
        assert len({*windows_of(loader)}) == 140


def test_loaders_batches_in_workers_of_a_data_loader_are_read_without_or_from_the_stream(aloha_shards):
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=0, num_threads=0) as loader:
        parts = {"batch_sampler": loader.batch_sampler, "collate_fn": loader.collate_fn}
        with pytest.raises(OptionError, match=r"num_workers=0, or the loader's stream with batch_size=None"):
            list(DataLoader(loader.dataset, num_workers=1, **parts))
        assert len({*windows_of(DataLoader(loader.dataset, num_workers=0, **parts))}) == 140
        assert len({*windows_of(DataLoader(loader.stream, batch_size=None, num_workers=1))}) == 140


def test_state_of_another_stream_is_loaded_by_one_made_with_the_saved_values(aloha_shards):
    state = stream_of(aloha_shards, seed=4).state_dict()
    with pytest.raises(StateError, match=r"seed is 4, this stream has 0\. Make the stream with the saved values"):
        stream_of(aloha_shards).load_state_dict(state)
    stream_of(aloha_shards, seed=state["seed"]).load_state_dict(state)


def test_state_of_an_iterator_with_other_workers_takes_the_saved_number_or_a_loaders_state(aloha_shards):
    batches = iter(stream_of(aloha_shards))
    begun = windows_of([next(batches)])
    saved = batches.state_dict()
    with pytest.raises(StateError, match="Use the saved values, or a StreamingLoader, whose state fits any"):
        iter(stream_of(aloha_shards)).load_state_dict({**saved, "num_workers": 2})
    again = iter(stream_of(aloha_shards))
    again.load_state_dict(saved)
    assert len({*begun, *windows_of(again)}) == 140
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=0, num_threads=2) as loader:
        begun = windows_of([next(iter(loader))])
        state = loader.state_dict()
    with es.StreamingLoader(stream_of(aloha_shards), num_workers=0, num_threads=1) as loader:
        loader.load_state_dict(state)
        assert len({*begun, *windows_of(loader)}) == 140


def test_presets_that_decide_shapes_go_without_the_options_that_would(aloha_shards):
    for wrong, advice in (
        ({"squeeze": True}, "Leave squeeze out"),
        ({"channels_first": True}, "Leave channels_first out"),
    ):
        with pytest.raises(OptionError, match=advice):
            es.EpisodeStream(aloha_shards, sample_format="act", **wrong)
    assert len(next(iter(es.EpisodeStream(aloha_shards, sample_format="act")))) == 4
    wanted = ["observation.images.top", "observation.qvel", "action"]
    with pytest.raises(OptionError, match="Say which stand for it, for example IlStudioFormat") as caught:
        es.EpisodeStream(aloha_shards, sample_format="ilstudio", features=wanted)
    assert "and stream them" in str(caught.value)
    named = es.IlStudioFormat(state=("observation.qvel",))
    batch = next(iter(es.EpisodeStream(aloha_shards, sample_format=named, features=wanted)))
    assert batch["state"].shape[-1] == 14


def test_function_that_does_not_pickle_is_defined_at_the_top_of_a_module(aloha_shards):
    with pytest.raises(OptionError, match="Define it with def at the top of a module"):
        pickle.dumps(es.StreamingLoader(stream_of(aloha_shards), on_device=lambda batch: batch))
    pickle.dumps(es.StreamingLoader(stream_of(aloha_shards), on_device=windows_of))
