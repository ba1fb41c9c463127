"""float64 as it was recorded: kept where that is asked for, and told where float32 would lose it."""

import logging
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hdf5_files import robomimic

import epistream as es
from epistream.commands import cli
from epistream.errors import OptionError
from epistream.loader.reading import precision
from epistream.loader.reading.precision import loses_steps

STAMP = "observation.stamp"
STARTS = (1.7e9, 1.7000864e9)
LENGTHS = {"demo_0": 40, "demo_1": 25}


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch, tmp_path):
    monkeypatch.setattr(precision, "WARNED", set())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def recorded(tmp_path):
    """Two episodes at 50 Hz with seconds since 1970; what h5py has of them."""
    path = robomimic(tmp_path / "d.hdf5", LENGTHS, cameras=())
    with h5py.File(path, "r+") as file:
        for start, (demo, length) in zip(STARTS, LENGTHS.items(), strict=True):
            stamps = start + 0.02 * np.arange(length)
            file[f"data/{demo}/obs/stamp"] = stamps
            file[f"data/{demo}/obs/nanoseconds"] = (stamps * 1e9).astype(np.int64)
    return path


@pytest.fixture(params=["hdf5", "packed", "mixed"])
def source(request, recorded, tmp_path):
    if request.param == "hdf5":
        return str(recorded)
    es.pack(recorded, tmp_path / "out")
    return str(tmp_path / "out") if request.param == "packed" else [str(tmp_path / "out"), str(recorded)]


def stamps_of(batch):
    starts = np.array([STARTS[int(episode) % 2] for episode in batch["episode_index"]])
    return starts + 0.02 * batch["step_index"].numpy()


def test_float64_is_kept_where_that_is_asked_for(source):
    stream = es.EpisodeStream(source, batch_size=13, dtypes={STAMP: "float64"}, cache="off")
    num_rows = 0
    for batch in stream:
        assert batch[STAMP].dtype == torch.float64
        assert batch["action"].dtype == torch.float32
        np.testing.assert_array_equal(batch[STAMP][:, 0].numpy(), stamps_of(batch))
        num_rows += len(batch[STAMP])
    assert num_rows >= 65
    one = stream.read(episode_index=0, step=3)
    assert one[STAMP].dtype == torch.float64
    assert one[STAMP].item() == STARTS[0] + 0.06


def test_workers_and_pickled_streams_keep_it_too(recorded):
    stream = es.EpisodeStream(recorded, batch_size=13, dtypes={"observation.st*": "float64"})
    stream = pickle.loads(pickle.dumps(stream))
    with es.StreamingLoader(stream, num_workers=1, start_method="fork") as loader:
        for batch in loader:
            np.testing.assert_array_equal(batch[STAMP][:, 0].numpy(), stamps_of(batch))


def test_state_and_order_do_not_know_of_dtypes(recorded):
    plain, kept = ({"batch_size": 13, "seed": 4}, {"batch_size": 13, "seed": 4, "dtypes": {"*": "float64"}})
    one, other = (iter(es.StreamingLoader(es.EpisodeStream(recorded, **options))) for options in (plain, kept))
    np.testing.assert_array_equal(next(one)["step_index"], next(other)["step_index"])
    loader = es.StreamingLoader(es.EpisodeStream(recorded, **plain))
    next(iter(loader))
    again = es.StreamingLoader(es.EpisodeStream(recorded, **kept))
    again.load_state_dict(loader.state_dict())
    np.testing.assert_array_equal(next(iter(again))["step_index"], next(one)["step_index"])


def test_mixtures_take_streams_of_one_dtype_and_name_what_differs(recorded):
    kept = [es.EpisodeStream(recorded, dtypes={STAMP: "float64"}, seed=seed) for seed in range(2)]
    batch = next(iter(es.Mixture(kept, [1, 1], batch_size=10)))
    np.testing.assert_array_equal(batch[STAMP][:, 0].numpy(), stamps_of(batch))
    with pytest.raises(OptionError, match=r"Mixture.*float"):
        es.Mixture([kept[0], es.EpisodeStream(recorded)], [1, 1], batch_size=10)


@pytest.mark.parametrize("mode", ["mean_std", "min_max", "quantiles"])
def test_kept_features_are_normalised_in_float64(recorded, mode):
    stream = es.EpisodeStream(recorded, batch_size=65, dtypes={STAMP: "float64"}, normalize={STAMP: mode})
    batch = next(iter(stream))
    found = batch[STAMP]
    assert found.dtype == torch.float64
    assert len(torch.unique(found)) == 65
    restored = es.Normalizer.from_dict(stream.normalizer.to_dict())
    np.testing.assert_allclose(restored.unnormalize(STAMP, found)[:, 0].numpy(), stamps_of(batch), rtol=0, atol=1e-6)


def test_normalizer_of_ones_own_must_hold_what_dtypes_keeps(recorded):
    statistics = es.open_dataset(recorded).statistics
    own = es.Normalizer(statistics, {STAMP: "mean_std"})
    options = {"batch_size": 65, "dtypes": {STAMP: "float64"}}
    with pytest.raises(OptionError, match=r'dtypes=\{"observation.stamp": "float64"\}'):
        es.EpisodeStream(recorded, normalize=own, **options)
    own = es.Normalizer(statistics, {STAMP: "mean_std"}, dtypes={STAMP: "float64"})
    assert next(iter(es.EpisodeStream(recorded, normalize=own, **options)))[STAMP].dtype == torch.float64


def test_integers_become_floats_where_that_is_asked_for(recorded, caplog):
    name = "observation.nanoseconds"
    kept = next(iter(es.EpisodeStream(recorded, batch_size=65, features=[name])))[name]
    as_float = next(iter(es.EpisodeStream(recorded, batch_size=65, features=[name], dtypes={name: "float64"})))[name]
    assert (kept.dtype, as_float.dtype) == (torch.int64, torch.float64)
    assert torch.equal(kept.to(torch.float64), as_float)
    assert not caplog.records
    next(iter(es.EpisodeStream(recorded, batch_size=65, features=[name], dtypes={name: "float32"})))
    (record,) = caplog.records
    assert 'dtypes={"observation.nanoseconds": "float64"}' in record.getMessage()


@pytest.mark.parametrize(
    ("dtypes", "said"),
    [
        ({"observation.stamq": "float64"}, r"'observation.stamq' is not among .*'observation.stamp'"),
        ({"*.depth": "float64"}, r"'\*.depth' is not among the streamed features"),
        ({"action": "int64"}, r"dtypes\['action'\]: 'int64', wanted 'float32' or 'float64'\. Leave"),
    ],
)
def test_dtypes_that_cannot_be_are_refused(recorded, dtypes, said):
    with pytest.raises(OptionError, match=said):
        es.EpisodeStream(recorded, dtypes=dtypes)


def test_dtype_of_a_camera_is_refused(tmp_path):
    path = robomimic(tmp_path / "c.hdf5", {"demo_0": 4})
    with pytest.raises(OptionError, match=r"'observation\.images\.agentview' is a camera, wanted some of"):
        es.EpisodeStream(path, dtypes={"observation.images.agentview": "float64"})


def test_name_wins_over_a_pattern(recorded):
    dtypes = {STAMP: "float64", "*": "float32"}
    batch = next(iter(es.EpisodeStream(recorded, batch_size=9, dtypes=dtypes)))
    assert (batch[STAMP].dtype, batch["observation.nanoseconds"].dtype) == (torch.float64, torch.float32)


def test_configurations_and_their_commands_take_dtypes(recorded, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(f"source: {recorded}\nstream: {{batch_size: 5, dtypes: {{{STAMP}: float64}}}}\n")
    assert next(iter(es.EpisodeStream.from_config(es.load_config(config))))[STAMP].dtype == torch.float64
    done = CliRunner().invoke(cli, ["config", "show", str(config)])
    assert done.exit_code == 0
    assert "dtypes" in done.output


def test_what_float32_loses_is_warned_of_once_in_a_process(source, caplog):
    for seed in range(2):
        list(es.EpisodeStream(source, batch_size=1, seed=seed, cache="off"))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    said = record.getMessage()
    assert "observation.stamp is recorded as float64, and float32 cannot tell its steps apart" in said
    assert 'Keep it with dtypes={"observation.stamp": "float64"}' in said


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nothing_is_said_of_what_was_asked_for(recorded, caplog, dtype):
    list(es.EpisodeStream(recorded, batch_size=5, dtypes={STAMP: dtype}))
    assert not caplog.records


def at_rest(length):
    return 0.8 + 1e-12 * np.random.default_rng(0).normal(size=length)


STEPS = np.arange(400)
COLUMNS = {
    "seconds since 1970": (1.7e9 + 0.02 * STEPS, True),
    "the same at 200 Hz, of half a second": ((1.7e9 + 0.005 * STEPS)[:100], True),
    "nanoseconds": ((1.7e18 + 2e7 * STEPS).astype(np.int64), True),
    "degrees of a place on Earth": (48.137 + 1e-7 * np.sin(STEPS / 9) * STEPS, True),
    "seconds of an episode": (0.02 * STEPS, False),
    "joint": (np.sin(STEPS / 20), False),
    "body at rest": (at_rest(400), False),
    "body that moves and rests": (np.concatenate([0.001 * STEPS[:100], 0.1 + 1e-9 * STEPS[:300]]), False),
    "constant": (np.full(400, 1.7e9), False),
    "nothing but NaN": (np.full(400, np.nan), False),
    "NaN between": (np.where(STEPS % 3 == 0, np.nan, 1.7e9 + 0.02 * STEPS), True),
    "too large for float32": (1e300 * (1 + STEPS), False),
    "one step": (np.array([1.7e9]), False),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_loss_is_found_where_steps_matter(name):
    values, wanted = COLUMNS[name]
    assert loses_steps(np.stack([np.zeros_like(values), values], axis=1)).tolist() == [False, wanted]


@pytest.mark.parametrize("sample_format", ["act", "diffusion_policy", "lerobot", "ilstudio"])
def test_sample_formats_take_features_that_are_kept(example_data, sample_format):
    path = Path(example_data) / "aloha" / "episode_0.hdf5"
    kept = {"observation.state": "float64", "action": "float64"}
    plain, double = (
        next(iter(es.EpisodeStream(path, batch_size=2, sample_format=sample_format, dtypes=dtypes, shuffle=False)))
        for dtypes in (None, kept)
    )
    position = 2 if sample_format == "act" else "action"
    assert double[position].dtype == torch.float64
    assert torch.equal(plain[position], double[position].to(torch.float32))
