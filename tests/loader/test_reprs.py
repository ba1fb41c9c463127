"""What a notebook shows of our objects: a few lines, with what matters, and no secrets."""

import dataclasses

import pytest

import epistream as es
from epistream.loader.monitoring.report import PerformanceReport


@pytest.fixture(scope="module")
def objects(aloha_shards, aloha_files, tmp_path_factory):
    stream = es.EpisodeStream(aloha_shards, batch_size=20, features=["action"], window=es.Window(action=range(500)))
    mixture = es.Mixture([stream] * 60, [1] * 60, batch_size=4)
    with es.StreamingLoader(stream, num_workers=0) as loader:
        list(loader)
        report = loader.report()
    packed = es.pack(aloha_files, tmp_path_factory.mktemp("packed") / "out")
    config = es.load_config(source=[f"s3://bucket/{number}" for number in range(500)], preset="large", batch_size=4)
    return {
        "stream": stream,
        "mixture": mixture,
        "loader": loader,
        "loader of a mixture": es.StreamingLoader(mixture, num_workers=0, num_threads=0),
        "report": report,
        "stats": report.stats,
        "dataset": stream.job.dataset,
        "job": stream.job,
        "job of a mixture": mixture.job,
        "packed": packed,
        "config": config,
        "world": stream.job.world,
        "window": es.Window(obs=[0, 1, 3, *range(10, 3000, 7)], action=range(500)),
        "place": stream.locate(0),
        "normalizer": es.EpisodeStream(aloha_shards, normalize="mean_std").normalizer,
        "options": es.StreamOptions(
            repetitions=[1] * 10_000, features=["a"] * 500, delta_timestamps={"action": [n / 50 for n in range(500)]}
        ),
        "cache options": es.CacheOptions(),
        "order options": es.OrderOptions(),
        "monitor options": es.MonitorOptions(),
        "format": es.ActFormat(),
        "episodic": es.OptimizedEpisodicDataset(list(map(str, aloha_files)), ["top"]),
        "numbered": loader.dataset,
        "sampler": loader.sampler,
        "iterator": iter(stream),
    }


def test_every_object_has_a_short_repr(objects):
    too_long = {name: len(repr(each)) for name, each in objects.items() if len(repr(each)) > 1200}
    assert too_long == {}
    assert {name: repr(each) for name, each in objects.items() if repr(each).count("\n") > 3} == {}


def test_reprs_say_what_matters(objects, aloha_shards):
    at = f"EpisodeStream({str(aloha_shards)!r}: 140 windows of 1 dataset, batch_size=20, rank 0 of 1, next epoch 1)"
    assert repr(objects["stream"]) == at
    assert repr(objects["loader"]) == f"StreamingLoader({at}, 2 threads)"
    assert "windows of 60 datasets, batch_size=4" in repr(objects["mixture"])
    assert repr(objects["dataset"]).startswith(f"Dataset({str(aloha_shards)!r}: 2 episodes, 140 steps, 2 shards; [")
    assert "2 episodes, 140 steps, 1 shard" in repr(objects["packed"])
    assert "stream.batch_size=4" in repr(objects["config"])
    assert repr(objects["stats"]).startswith("LoaderStats(140 windows in 7 batches, ")
    assert [line.split()[0] for line in repr(objects["report"]).splitlines()[1:]] == ["limit", "do"]
    assert "memory" in str(objects["report"])
    assert isinstance(objects["report"], PerformanceReport)
    moved = es.EpisodeStream(aloha_shards)
    moved.set_epoch(3, 1000)
    assert repr(moved).endswith("next epoch 3 at window 1,000)")


@pytest.mark.parametrize(
    ("window", "text"),
    [
        (es.Window(), "Window(obs=(0,), action=(0,))"),
        (es.Window(range(-1, 1), range(16)), "Window(obs=(-1, 0), action=range(0, 16))"),
        (es.Window(action=range(0, 30, 3), pad="zero"), "Window(obs=(0,), action=range(0, 30, 3), pad='zero')"),
        (
            es.Window(overrides={"action.arm": range(4)}, drop_incomplete=True, must_fit=(0, 3)),
            "Window(obs=(0,), action=(0,), overrides={'action.arm': range(0, 4)}, drop_incomplete=True, "
            "must_fit=(0, 3))",
        ),
    ],
)
def test_window_is_shown_as_it_is_made(window, text):
    assert repr(window) == text
    assert eval(text, {"Window": es.Window}) == window
    assert dataclasses.replace(window) == window


def test_stream_that_was_not_asked_for_its_world_shows_itself(aloha_shards, monkeypatch):
    stream = es.EpisodeStream(aloha_shards)
    monkeypatch.setattr(type(stream), "_find_world", lambda _: pytest.fail("asked"))
    assert "rank 0 of 1" in repr(stream)


def test_reprs_show_no_secret_of_a_url(objects):
    dataset = dataclasses.replace(objects["dataset"], url="https://u:PASSW0RD@host/ds?sig=S1GNATURE")
    packed = dataclasses.replace(objects["packed"], url="https://u:PASSW0RD@host/ds?sig=S1GNATURE")
    for each in (dataset, packed):
        assert "https://***@host/ds?***" in repr(each)
        assert "PASSW0RD" not in repr(each)
        assert "S1GNATURE" not in repr(each)
