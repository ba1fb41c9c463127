"""LeRobot data sets in every mode of a stream, beside shards and HDF5 files, and by path and number."""

from argparse import Namespace
from collections import Counter

import numpy as np
import pytest
import torch
from robots.lerobot_meta import numbers, video
from robots.lerobot_sets import RobotSet, shown
from robots.reading import all_steps, steps_seen, stream_of
from video.clips import number_of

import epistream as es
from epistream.errors import FormatError, OptionError

TOP = "observation.images.top"
FEATURES = {"action": numbers(14), "observation.state": numbers(14), TOP: video()}


@pytest.fixture(scope="module", params=[("v2.1", 30), ("v3.0", 2)], ids=["v2.1, blocks", "v3.0, windows"])
def made(request, tmp_path_factory):
    version, group_steps = request.param
    spec = RobotSet(version=version, lengths=(8, 33, 7), group_steps=group_steps, features=FEATURES)
    return spec, spec.write(tmp_path_factory.mktemp("modes") / "set")


MODES = {
    "one process": {},
    "two workers": {"num_workers": 2},
    "threads": {"num_workers": 0, "num_threads": 2},
    "spawned": {"num_workers": 1, "start_method": "spawn"},
    "shared memory": {"num_workers": 2, "cache": "shm"},
    "disk": {"cache": "disk"},
    "in place": {"cache": "off", "num_workers": 1},
    "kept decoded": {"decode": "once", "num_workers": 2},
    "decoded per read": {"decode": "per_read"},
    "blocks": {"order": es.OrderOptions(by="blocks", block_steps=8)},
    "windows": {"order": es.OrderOptions(by="windows")},
}


@pytest.mark.parametrize("mode", MODES)
def test_each_step_comes_once_as_it_was_put_in(made, mode):
    spec, root = made
    loading = {
        key: value for key, value in MODES[mode].items() if key in ("num_workers", "num_threads", "start_method")
    }
    reading = {key: value for key, value in MODES[mode].items() if key not in loading}
    with es.StreamingLoader(stream_of(root, shuffle=True, **reading), **{"num_workers": 0, **loading}) as loader:
        assert steps_seen(loader, spec) == all_steps(spec)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_plain_data_loader_gives_the_same(made, num_workers):
    spec, root = made
    loader = torch.utils.data.DataLoader(stream_of(root, shuffle=True), batch_size=None, num_workers=num_workers)
    assert steps_seen(loader, spec) == all_steps(spec)


@pytest.mark.parametrize("how", [{}, {"decode": "once"}, {"cache": "shm"}])
def test_what_is_left_of_an_epoch_comes_after_a_state(made, how):
    _, root = made

    def places(batches):
        return [(batch["episode_index"].tolist(), batch["step_index"].tolist()) for batch in batches]

    for stop in (1, 5):
        with es.StreamingLoader(stream_of(root, shuffle=True, **how), num_workers=0) as loader:
            batches = iter(loader)
            for _ in range(stop):
                next(batches)
            state, left = loader.state_dict(), places(batches)
        with es.StreamingLoader(stream_of(root, shuffle=True, **how), num_workers=1) as loader:
            loader.load_state_dict(state)
            assert places(loader) == left


def test_a_validation_stream_has_the_other_episodes(made):
    spec, root = made
    seen = [
        steps_seen(stream_of(root, val_fraction=0.4, split=split, validation=split == "val"), spec)
        for split in ("train", "val")
    ]
    assert seen[0].keys().isdisjoint(seen[1])
    assert seen[0] + seen[1] == all_steps(spec)


@pytest.fixture
def others(aloha_files, aloha_shards):
    return [str(aloha_files[0]), str(aloha_shards)]


def test_in_a_list_with_shards_and_files_what_is_shared_is_one_stream(made, others):
    spec, root = made
    sources = [others[0], str(root), others[1]]
    with pytest.raises(FormatError, match="wanted the same features"):
        es.open_dataset(sources)
    stream = es.EpisodeStream(
        sources, features=["action", "observation.state"], batch_size=4, shuffle=False, remainder="pad"
    )
    counts = Counter()
    for batch in stream:
        for row in np.flatnonzero(~batch["is_repeat"].numpy()).tolist():
            episode, step = int(batch["episode_index"][row]), int(batch["step_index"][row])
            counts[episode] += 1
            if 1 <= episode <= 3:
                np.testing.assert_array_equal(batch["action"][row, 0], spec.values("action", episode - 1)[step])
    assert counts == {0: 80, 1: 8, 2: 33, 3: 7, 4: 80, 5: 60}


def test_in_a_mixture_each_source_gives_its_share(made, others):
    streams = [es.EpisodeStream(one, features=["action"]) for one in (str(made[1]), *others)]
    mixture = es.Mixture(streams, [1, 1, 2], batch_size=8, stop=160)
    counts = Counter(one for batch in mixture for one in batch["dataset_index"].tolist())
    assert sum(counts.values()) == 160
    np.testing.assert_allclose([counts[0], counts[1], counts[2]], [40, 40, 80], atol=16)


def test_a_torn_set_in_a_list_is_left_out_by_choice_and_named(made, tmp_path):
    (tmp_path / "torn" / "meta").mkdir(parents=True)
    (tmp_path / "torn" / "meta" / "info.json").write_text('{"codebase_version": "v3.0"')
    dataset = es.open_dataset([made[1], tmp_path / "torn"], on_bad="skip")
    assert dataset.num_episodes == 3
    assert list(dataset.skipped) == [str(tmp_path / "torn")]


def test_a_map_style_dataset_gives_its_episodes_by_path_and_number(made):
    spec, root = made
    dataset = es.OptimizedEpisodicDataset([str(root)], ["top"], ctrl_type="abs")
    assert len(dataset) == 8 + 33 + 7
    assert len(set(dataset.episode_paths)) == 3
    path = dataset.episode_paths[1]
    sample = dataset.load_onestep_from_episode(path, 5)
    np.testing.assert_array_equal(sample["action"][0], spec.values("action", 1)[5])
    assert number_of(sample["image"]["top"]) == shown(0, 1, 5)
    assert dataset.get_language_instruction(path) == "pick it up"


def test_texts_of_steps_are_not_looked_for_in_a_set(made):
    with pytest.raises(OptionError, match="in a LeRobot data set, where none is looked for"):
        es.OptimizedEpisodicDataset([str(made[1])], ["top"], data_args=Namespace(use_reasoning=True))
