"""The tuner: it measures, chooses what can run, explains everything, and leaves nothing behind."""

import json
import re
import shutil
import tempfile
from pathlib import Path

import every_layout
import h5py
import numpy as np
import pytest

import epistream as es
from epistream.configs import survey as survey_module
from epistream.configs.machine import Machine
from epistream.configs.tune_options import TuneOptions
from epistream.configs.tuned_yaml import tuned_yaml
from epistream.configs.tuner import tune
from epistream.errors import EpistreamError, OptionError
from epistream.loader.measuring.rates import measure_loading, unique_share
from epistream.loader.order.judgement import judge

QUICK = TuneOptions(seconds=0.02)
BASE = {"batch_size": 2, "action": "0:20"}


@pytest.fixture(scope="module")
def tuning(aloha_shards):
    said = []
    found = tune(str(aloha_shards), QUICK, es.load_config(**BASE), said.append)
    assert said
    return found


def test_tuning_gives_a_reason_for_each_choice(tuning):
    chosen = {key for key, _, origin, _ in tuning.config.rows() if origin != "default"}
    asked = {"stream.batch_size", "stream.window.action"}
    assert chosen - set(tuning.reasons) == asked
    assert {"loader.num_workers", "loader.prefetch", "stream.decode", "cache.mode", "order.lanes"} <= chosen
    assert all(tuning.reasons.values())


def test_tuning_of_140_windows_measures_them(tuning):
    found = tuning.survey
    assert (found.num_windows, found.batch_size) == (140, 2)
    # Two cameras of 480 x 640 x 3 in 80 + 60 steps.
    assert found.decoded_bytes == 140 * 2 * 480 * 640 * 3
    assert found.fetch_bytes_per_s > 0
    assert min(rate.windows_per_s for rate in (*found.alone.values(), *found.together.values())) > 0
    assert tuning.prediction.windows_per_s > 0
    assert json.loads(json.dumps(tuning.to_json()))["survey"]["num_windows"] == 140


def test_tuning_written_as_yaml_reads_back_and_runs(tuning, tmp_path):
    text = tuned_yaml(tuning)
    file = tmp_path / "tuned.yaml"
    file.write_text(text)
    config = es.load_config(file)
    assert config.settings == tuning.config.settings
    commented = [line for line in text.splitlines() if "  # " in line]
    assert len(commented) == len(tuning.reasons)
    with config.loader() as loader:
        assert next(iter(loader))["action"].shape == (2, 20, 14)


def test_tuning_leaves_nothing_in_shared_memory(aloha_shards, monkeypatch):
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    monkeypatch.setattr("epistream.cache.store.places.SHM_PARENT", folder)
    try:
        tune(str(aloha_shards), QUICK, es.load_config(**BASE))
        assert list(folder.iterdir()) == []
    finally:
        shutil.rmtree(folder)


def test_tuning_of_hdf5_files_compares_packing(example_data):
    source = str(example_data / "robomimic" / "*.hdf5")
    found = tune(source, QUICK, es.load_config(batch_size=8))
    plain, video = found.repacking
    assert (plain.name, video.name) == ("packed with the defaults", "packed as H.264, groups of 30, by blocks")
    assert video.dataset_bytes < plain.dataset_bytes
    assert min(way.prediction.windows_per_s for way in found.repacking) > 0
    assert video.prediction.decoded_bytes == found.pictures[-1].pool_bytes > 0
    assert found.reasons["stream.decode"].startswith("no frames")


def test_tuning_of_hdf5_files_of_ones_own_layout_compares_packing(tmp_path):
    source, layout = every_layout.write_own(tmp_path)
    source = source.rename(tmp_path / "runs")  # what it holds says that it is HDF5
    found = tune(str(source), QUICK, es.load_config(batch_size=2, features="action", layout=str(layout)))
    assert "packed with the defaults" in {way.name for way in found.repacking}


def test_tuning_with_small_memory_keeps_nothing_decoded_and_few_batches(aloha_shards, monkeypatch):
    small = Machine(2, 0.0, 1 << 30, 40 << 20, 40 << 20, 40 << 20)
    monkeypatch.setattr(Machine, "look", classmethod(lambda cls: small))
    found = tune(str(aloha_shards), QUICK, es.load_config(**BASE))
    assert found.config.settings.stream.decode == "per_read"
    assert found.config.settings.loader.prefetch == 1


def test_tuning_for_a_target_out_of_reach_says_so(aloha_shards):
    base = es.load_config(**BASE, features="action")
    found = tune(str(aloha_shards), TuneOptions(seconds=0.02, target=1e9), base)
    assert any("out of reach" in note for note in found.notes)


def test_tuning_for_several_nodes_gives_each_its_lanes(aloha_shards):
    base = es.load_config(**BASE, features="action")
    found = tune(str(aloha_shards), TuneOptions(seconds=0.02, nodes=3, ranks=2), base)
    assert found.config.settings.order.lanes % 3 == 0
    assert found.config.settings.loader.num_workers in (0, 1)


@pytest.fixture(scope="module")
def many_shards(tmp_path_factory):
    """160 shards of one episode of 20 steps each, without cameras."""
    folder = tmp_path_factory.mktemp("many")
    with h5py.File(folder / "demos.hdf5", "w") as file:
        for episode in range(160):
            file[f"data/demo_{episode}/actions"] = np.full((20, 3), episode, np.float64)
            # 72 kB, more than the smallest shards.
            file[f"data/demo_{episode}/obs/robot0_joint_pos"] = np.zeros((20, 450))
    es.pack(folder, folder / "shards", shard_size="64KiB")
    return str(folder / "shards")


def test_tuning_chooses_resident_shards_for_the_global_batch_and_says_how_varied_it_is(many_shards):
    base = es.load_config(batch_size=64)
    order = tune(many_shards, TuneOptions(seconds=0.02, nodes=2, ranks=4), base).config.settings.order
    assert order.lanes == 2
    # More than the preset's 64: those hold half of the episodes, and a batch of 512 nearly all.
    assert order.resident_shards > 64
    stream = es.EpisodeStream(many_shards, order=es.OrderOptions(lanes=2, resident_shards=order.resident_shards))
    assert judge(stream.job.part.plan, 512, 2).word == "good"


def test_tuning_without_the_memory_for_a_varied_batch_says_what_it_would_take(many_shards, monkeypatch):
    small = Machine(2, 0.0, 1 << 30, 1_000_000, None, 1 << 30)
    monkeypatch.setattr(Machine, "look", classmethod(lambda cls: small))
    found = tune(many_shards, TuneOptions(seconds=0.02, ranks=4), es.load_config(batch_size=64))
    assert "shuffle poor, 0." in found.reasons["order.resident_shards"]
    [note] = [note for note in found.notes if note.startswith("shuffle")]
    wanted = int(re.search(r"(\d+) resident shards", note)[1])
    stream = es.EpisodeStream(many_shards, order=es.OrderOptions(lanes=2, resident_shards=wanted))
    assert judge(stream.job.part.plan, 256, 1).word == "good"


def test_tuning_for_more_nodes_than_shards_says_what_each_fetches(aloha_shards):
    base = es.load_config(**BASE, features="action")
    found = tune(str(aloha_shards), TuneOptions(seconds=0.02, nodes=50), base)
    assert any(note.startswith("each of 50 nodes fetches ") for note in found.notes)


def test_tuning_keeps_what_the_user_says(aloha_shards):
    base = es.load_config(**BASE, features="action", split=None, seed=5, log_every_s=30, squeeze=True)
    settings = tune(str(aloha_shards), QUICK, base).config.settings
    assert (settings.stream.seed, settings.stream.squeeze, settings.monitor.log_every_s) == (5, True, 30.0)


@pytest.mark.parametrize("options", [{"ranks": 0}, {"nodes": 0}, {"target": 0.0}, {"seconds": 0.0}])
def test_tune_options_that_cannot_work_are_refused(options):
    with pytest.raises(OptionError, match="above 0"):
        TuneOptions(**options)


def test_tune_without_a_dataset_is_an_error_of_ours(tmp_path):
    with pytest.raises(EpistreamError):
        tune(str(tmp_path / "nothing"), QUICK)


@pytest.mark.parametrize("kind", ["processes", "threads"])
def test_loading_that_fails_is_told(aloha_shards, tmp_path, kind):
    for file in aloha_shards.iterdir():
        if file.suffix != ".tar":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(EpistreamError, match=r"shard-\d+\.tar"):
        measure_loading(es.EpisodeStream(tmp_path, batch_size=8), 2, kind, 0.01)


def test_unique_share_counts_frames_that_windows_share(aloha_shards):
    # One batch of all 140 windows, two observations each: steps -1 (edge: 0) and 0.
    window = es.Window(obs=range(-1, 1))
    job = es.EpisodeStream(aloha_shards, batch_size=140, window=window).job
    assert unique_share(job) == 140 / 280
    assert unique_share(es.EpisodeStream(aloha_shards, batch_size=140, features=["action"]).job) == 1.0


def test_sample_of_a_large_dataset_is_a_part_of_it(aloha_shards, monkeypatch):
    monkeypatch.setattr(survey_module, "_SAMPLE_BYTES", 1)
    base = es.load_config(**BASE, features="action", source=str(aloha_shards))
    found, whole, sample = survey_module.survey(base, None, 0.02)
    assert found.num_windows == whole.num_windows == 140
    assert sample.num_windows < 140
    assert np.count_nonzero(sample.job.part.plan.per_shard) == 1


def test_memory_of_a_worker_leaves_out_its_slots_which_the_ring_counts(aloha_shards):
    small, large = (es.EpisodeStream(aloha_shards, batch_size=size, decode="per_read") for size in (2, 16))
    own = [measure_loading(stream, 1, "processes", 0.01).worker_bytes for stream in (small, large)]
    slots = 3 * (large.job.layout.num_bytes - small.job.layout.num_bytes)
    assert own[0] > 0
    assert own[1] - own[0] < slots / 4


def test_tuning_measures_what_the_cameras_cost_as_video_and_says_how_to_pack_it(tuning):
    stored, video = tuning.pictures
    assert (stored.name, video.name) == ("as stored (jpeg)", "H.264, crf 18, groups of 30")
    # As recorded a frame takes some 11.5 kB.
    assert 11_000 < stored.bytes_per_frame < 12_000
    assert video.bytes_per_frame < 0.3 * stored.bytes_per_frame
    assert video.psnr_db > 45
    assert video.dataset_bytes < 0.4 * stored.dataset_bytes
    assert (stored.pool_bytes, video.pool_bytes > 0) == (0, True)
    text = tuned_yaml(tuning)
    assert "# Pictures as stored (jpeg): dataset 3." in text
    assert "# Pictures H.264, crf 18, groups of 30: dataset " in text
    assert "epistream pack RECORDINGS OUT --codec h264 --crf 18 --gop 30" in text
    assert json.loads(json.dumps(tuning.to_json()))["pictures"][1]["group_steps"] == 30
