"""Advice about worlds, windows, orders and samples, taken: what was asked, and what the message says."""

import re
from dataclasses import replace

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from hdf5_files import aloha_jpeg
from words.advised import taken

import epistream as es
from epistream.commands import cli
from epistream.errors import EpistreamError
from epistream.loader.order.anchors import Anchors
from epistream.loader.order.mixture_plan import MixturePlan
from epistream.loader.order.mixture_schedule import MixtureSchedule
from epistream.loader.order.plan import Plan
from epistream.loader.order.schedule import Schedule
from epistream.loader.order.working_set import budget_advice
from epistream.loader.samples.normalize import normalizer_for


def said(action):
    with pytest.raises(EpistreamError) as caught:
        action()
    return str(caught.value)


def stream(source, **options):
    return es.EpisodeStream(source, **{"batch_size": 4, "features": ["action", "observation.state"], **options})


def numbers(text, name):
    return [int(found) for found in re.findall(rf"{name}=(\d+)", text)]


@taken("loader/order/options.py", "resident_shards=", "lanes=", "shuffle=")
def test_resident_shards_of_less_than_two_a_lane():
    text = said(lambda: es.OrderOptions(lanes=8, resident_shards=4))
    assert es.OrderOptions(lanes=8, resident_shards=numbers(text, "resident_shards")[-1])
    assert es.OrderOptions(lanes=numbers(text, "lanes")[-1], resident_shards=4)
    text = said(lambda: es.OrderOptions(lanes=1, resident_shards=1))
    assert "or shuffle=False" in text
    assert es.OrderOptions(lanes=1, resident_shards=1, shuffle=False)


@taken("loader/order/options.py", "pool_blocks=", "lanes=", "by=", "shuffle=")
def test_orders_by_blocks_that_cannot_be():
    text = said(lambda: es.OrderOptions(lanes=8, pool_blocks=6))
    assert es.OrderOptions(lanes=8, pool_blocks=numbers(text, "pool_blocks")[-1])
    assert es.OrderOptions(lanes=numbers(text, "lanes")[-1], pool_blocks=6)
    text = said(lambda: es.OrderOptions(lanes=1, pool_blocks=1))
    assert "or by='windows'" in text
    text = said(lambda: es.OrderOptions(by="windows", block_steps=8))
    assert "Use by='blocks', or leave block_steps out." in text
    assert es.OrderOptions(by="blocks", block_steps=8)
    assert es.OrderOptions(by="windows")
    text = said(lambda: es.OrderOptions(shuffle=False, by="blocks"))
    assert "Use shuffle=True, or leave them out" in text
    assert es.OrderOptions(shuffle=True, by="blocks")
    assert es.OrderOptions(shuffle=False)


@taken("loader/order/schedule.py", "batch_size=", "remainder=")
def test_batches_of_more_than_an_epoch(aloha_shards):
    text = said(lambda: stream(aloha_shards, batch_size=1000).num_batches)
    assert stream(aloha_shards, batch_size=numbers(text, "batch_size")[-1]).num_batches == 1
    assert 'or remainder="pad"' in text
    assert stream(aloha_shards, batch_size=1000, remainder="pad").num_batches == 1
    assert said(lambda: Schedule(3, 1, 0, 0, 0, es.World.of(0, 4), 1)).endswith('Use remainder="pad".')
    assert Schedule(3, 1, 0, 0, 0, es.World.of(0, 4), 1, "pad")


@taken("loader/order/world.py", "rank=", "size=", "local_size=", "uneven=")
def test_nodes_that_are_not_whole():
    text = said(lambda: es.World.of(3, 10, 4))
    assert es.World.of(3, 10, numbers(text, "local_size")[0])
    odd = {"rank": 3, "size": 6, "local_rank": 0, "local_size": 4, "node": 1, "num_nodes": 2}
    text = said(lambda: es.World(**odd))
    rank, size = numbers(text, "rank")[0], numbers(text, "size")[0]
    assert es.World.of(rank=rank, size=size, local_size=3)
    assert es.World(**odd, uneven=True)


@taken("loader/order/anchors.py", "split=", "drop_incomplete=", "epistream inspect")
@taken("loader/order/plan.py", "drop_incomplete=")
def test_windows_of_which_none_is_left(aloha_shards):
    text = said(lambda: stream(aloha_shards, split="test"))
    named = re.search(r"it has ([\w, ]+)\.", text)[1].split(", ")
    for split in (*named, None):
        assert stream(aloha_shards, split=split).num_windows == 140
    long = es.Window(action=range(100), drop_incomplete=True)
    text = said(lambda: stream(aloha_shards, window=long))
    assert "Use a shorter window, or Window(drop_incomplete=False) to pad." in text
    assert stream(aloha_shards, window=replace(long, drop_incomplete=False)).num_windows == 140
    assert stream(aloha_shards, window=replace(long, action=range(50))).num_windows


def test_split_without_episodes_names_those_that_have_some(aloha_shards):
    dataset = es.open_dataset(aloha_shards)
    empty = replace(dataset, splits=("train", "val"))
    text = said(lambda: Anchors(empty, "val", (0, 0), drop_incomplete=False))
    assert "Episodes by split: train 2, val 0. Use one of these, or split=None." in text
    assert Anchors(empty, "train", (0, 0), drop_incomplete=False).num_windows == 140
    assert Anchors(empty, None, (0, 0), drop_incomplete=False).num_windows == 140


@taken("loader/order/mixture_plan.py", "lanes=")
@taken("loader/order/mixture_schedule.py", "lanes=")
def test_datasets_of_a_mixture_with_other_lanes_or_too_few_windows(aloha_shards):
    def plans(*lanes):
        dataset = es.open_dataset(aloha_shards)
        anchors = Anchors(dataset, None, (0, 0), drop_incomplete=False)
        return [Plan.of(anchors, dataset, es.OrderOptions(lanes=count, resident_shards=4)) for count in lanes]

    text = said(lambda: MixturePlan(plans(1, 2), [1, 1]))
    [lanes] = numbers(text, "lanes")
    assert MixturePlan(plans(lanes, lanes), [1, 1])
    text = said(lambda: MixtureSchedule([1, 1], [20, 3], 8))
    assert MixtureSchedule([1, 1], [20, 3], numbers(text, "lanes")[-1])


@taken("loader/order/working_set.py", "lanes=", "resident_shards=", "shuffle=")
def test_order_that_draws_from_more_than_the_budget():
    shards = np.full(16, 100), np.full(16, 1 << 20), np.full(16, 10)
    plan = Plan(*shards, es.OrderOptions(lanes=4, resident_shards=16))
    for budget in (5 << 20, 9 << 20):
        text = budget_advice(plan, budget, 8)
        found = {name: numbers(text.partition(" Use ")[2], name)[-1:] for name in ("lanes", "resident_shards")}
        changes = {name: values[0] for name, values in found.items() if values}
        assert changes
        assert budget_advice(Plan(*shards, replace(plan.options, **changes)), budget, 8) is None
    for budget in (1 << 20, 2 << 20):
        unshuffled = budget_advice(Plan(*shards, es.OrderOptions(lanes=4, shuffle=False)), budget, 8)
        text = budget_advice(plan, budget, 8)
        assert "No shuffled order fits" in text
        assert ("or shuffle=False" in text) == (unshuffled is None) == (budget > 1 << 20)


@taken("loader/samples/delta_timestamps.py", "fps=", "--fps")
@taken("loader/samples/formats/lerobot.py", "--fps")
def test_rate_that_nobody_said(tmp_path):
    path, layout = aloha_jpeg(tmp_path / "a.hdf5", 6), tmp_path / "layout.yaml"
    rows = ["{path: action, name: action}", "{path: observations/qpos, name: observation.state}"]
    layout.write_text(f"name: own\nfeatures: [{', '.join(rows)}]\n")
    packed = ["pack", path, tmp_path / "out", "--layout-file", layout, "--workers", "1"]
    assert CliRunner().invoke(cli, list(map(str, packed))).exit_code == 0
    seconds = {"action": [0, 0.1]}
    text = said(lambda: stream(tmp_path / "out", delta_timestamps=seconds))
    assert "Give the window of window_in_seconds(..., fps=...), or pack again with --fps." in text
    features = es.open_dataset(tmp_path / "out").features
    assert stream(tmp_path / "out", window=es.window_in_seconds(seconds, features, fps=10)).num_windows == 6
    assert "Pack again with --fps." in said(lambda: stream(tmp_path / "out", sample_format="lerobot"))
    packed[2:3] = [tmp_path / "again", "--fps", "10"]
    assert CliRunner().invoke(cli, list(map(str, packed))).exit_code == 0
    assert stream(tmp_path / "again", delta_timestamps=seconds).num_windows == 6
    assert next(iter(stream(tmp_path / "again", sample_format="lerobot")))


@taken("loader/samples/action_delta.py", "action=", "state=", "dims=")
def test_action_delta_of_what_is_not_there(aloha_shards, tmp_path):
    features = ["action", "observation.qvel"]
    text = said(lambda: stream(aloha_shards, features=features, action_delta="delta_first"))
    assert "Give ActionDelta(kind, action=..., state=...)." in text
    delta = es.ActionDelta("delta_first", action="action", state="observation.qvel")
    assert next(iter(stream(aloha_shards, features=features, action_delta=delta)))


@taken("loader/samples/formats/diffusion_policy.py", "action=", "keys=")
def test_diffusion_policy_of_other_names(aloha_shards):
    features = ["observation.qvel", "observation.state"]
    text = said(lambda: stream(aloha_shards, features=features, sample_format="diffusion_policy"))
    assert "Give DiffusionPolicyFormat(action=...)." in text
    form = es.DiffusionPolicyFormat(action="observation.qvel")
    assert next(iter(stream(aloha_shards, features=features, sample_format=form)))
    text = said(lambda: stream(aloha_shards, features=["action"], sample_format="diffusion_policy"))
    assert "Name them with DiffusionPolicyFormat(keys={feature: key})." in text
    form = es.DiffusionPolicyFormat(keys={"observation.state": "agent_pos"})
    assert next(iter(stream(aloha_shards, sample_format=form)))


@taken("loader/loader.py", "num_workers=", "num_threads=")
@taken("loader/device.py", "device=")
def test_loader_of_both_kinds_or_of_a_device_that_is_not_there(aloha_shards, monkeypatch):
    text = said(lambda: es.StreamingLoader(stream(aloha_shards), num_workers=1, num_threads=1))
    assert "Leave num_threads out when there are worker processes." in text
    assert es.StreamingLoader(stream(aloha_shards), num_workers=1)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    text = said(lambda: es.StreamingLoader(stream(aloha_shards), device="cuda"))
    assert "Use device='cpu', or leave it out." in text
    for given in ({"device": "cpu"}, {}):
        with es.StreamingLoader(stream(aloha_shards), num_workers=0, num_threads=0, **given) as loader:
            assert next(iter(loader))


@taken("loader/samples/normalize.py", "epistream pack", "normalize=")
def test_statistics_that_are_not_there(tmp_path):
    path = aloha_jpeg(tmp_path / "a.hdf5", 6)
    features = es.open_dataset(path).features
    text = said(lambda: normalizer_for("mean_std", features, {}))
    assert "Pack it with 'epistream pack', or give a Normalizer with your own." in text
    es.pack(path, tmp_path / "out")
    statistics = es.open_dataset(tmp_path / "out").statistics
    assert next(iter(stream(tmp_path / "out", normalize="mean_std")))
    own = es.Normalizer(statistics, {"action": "mean_std"})
    assert next(iter(stream(path, normalize=own)))


@taken("sharding/hdf5/dataset.py", "epistream pack", "cache=")
def test_hdf5_files_that_are_slow_to_read(tmp_path, caplog):
    path = aloha_jpeg(tmp_path / "a.hdf5", 6)
    with h5py.File(path, "r+") as file:
        values = file["action"][:]
        del file["action"]
        file.create_dataset("action", data=values, compression="gzip")
    assert next(iter(stream(path)))["action"].any()
    [text] = [record.getMessage() for record in caplog.records if "several times slower" in record.getMessage()]
    assert "Pack them with 'epistream pack', or keep what is unpacked" in text
    cache = es.CacheOptions(mode=re.search("cache='(.*)'", text)[1], directory=str(tmp_path / "node"))
    assert next(iter(stream(path, cache=cache)))["action"].any()
    assert CliRunner().invoke(cli, ["pack", str(path), str(tmp_path / "out"), "--workers", "1"]).exit_code == 0
    assert next(iter(stream(tmp_path / "out")))["action"].any()
