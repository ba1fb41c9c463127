"""Sample formats: every window equals what the code base's own loader makes of the same HDF5 file."""

from pathlib import Path

import code_bases
import pytest
from sample_checks import assert_equal, compare, in_order

import epistream as es
from epistream.loader.samples.formats.act import ActFormat
from epistream.loader.samples.formats.diffusion_policy import DiffusionPolicyFormat
from epistream.loader.samples.formats.ilstudio import IlStudioFormat

LENGTHS = [80, 60]


def packed(path: Path, folder: Path) -> Path:
    es.pack([path], folder / "shards", codec=None if "aloha_compressed" in str(path) else "raw")
    return folder / "shards"


def test_act_at_every_position_equals_its_own_loader(aloha_shards, aloha_files):
    def expected():
        for path, length in zip(aloha_files, LENGTHS, strict=True):
            for t in range(length):
                yield code_bases.act(code_bases.aloha(path), t, 80)

    assert compare(in_order(aloha_shards, sample_format="act"), expected()) == 140


@pytest.mark.parametrize("lag", [False, True])
def test_act_with_chunk_size_and_lag_equals_its_own_loader(aloha_shards, aloha_files, lag):
    features = ["observation.images.top", "observation.state", "action"]
    sample_format = ActFormat(chunk_size=20, lag_one_step=lag)
    stream = in_order(aloha_shards, sample_format=sample_format, batch_size=9, features=features)
    seen = 0
    for batch in stream:
        _, state, action, is_pad = batch
        for row in range(len(state)):
            path, t = (aloha_files[0], seen) if seen < 80 else (aloha_files[1], seen - 80)
            expected = code_bases.act(code_bases.aloha(path), t, 20, lag)[1:]
            assert_equal((state[row], action[row], is_pad[row]), expected, f"{path}, {t}")
            seen += 1
    assert seen == 140


def test_ilstudio_at_every_position_equals_its_own_loader_straight_from_hdf5(aloha_files):
    def expected():
        for number, (path, length) in enumerate(zip(aloha_files, LENGTHS, strict=True)):
            for t in range(length):
                yield code_bases.ilstudio(code_bases.aloha(path), t, 16, number, "")

    assert compare(in_order(aloha_files, sample_format="ilstudio"), expected()) == 140


@pytest.mark.parametrize(("horizon", "num_obs", "num_actions"), [(16, 2, 8), (4, 2, 3), (10, 1, 10), (70, 3, 1)])
def test_diffusion_policy_has_the_windows_of_its_own_sampler(aloha_shards, aloha_files, horizon, num_obs, num_actions):
    def expected():
        for path, length in zip(aloha_files, LENGTHS, strict=True):
            for start in code_bases.diffusion_policy_starts(length, horizon, num_obs, num_actions):
                episode = code_bases.aloha(path)
                yield code_bases.diffusion_policy({**episode, "images": {}}, start, horizon, num_obs)

    stream = in_order(
        aloha_shards,
        sample_format=DiffusionPolicyFormat(horizon, num_obs, num_actions),
        features=["observation.state", "observation.qvel", "action"],
    )
    starts = [code_bases.diffusion_policy_starts(length, horizon, num_obs, num_actions) for length in LENGTHS]
    assert compare(stream, expected()) == sum(len(part) for part in starts)


def test_diffusion_policy_pictures_equal_its_own_loader(aloha_shards, aloha_files):
    def expected():
        for path, length in zip(aloha_files, LENGTHS, strict=True):
            for start in code_bases.diffusion_policy_starts(length, 16, 2, 8):
                episode = code_bases.aloha(path)
                one_camera = {**episode, "images": {"top": episode["images"]["top"]}}
                yield code_bases.diffusion_policy(one_camera, start, 16, 2)

    features = ["observation.images.top", "observation.state", "observation.qvel", "action"]
    stream = in_order(aloha_shards, sample_format="diffusion_policy", features=features)
    assert compare(stream, expected()) == 140 - 14


def test_lerobot_at_every_position_equals_its_own_loader_straight_from_hdf5(aloha_files):
    deltas = {
        "observation.images.top": [-0.02, 0.0],
        "observation.state": [-0.1, 0.0],
        "action": [i / 50 for i in range(16)],
    }

    def expected():
        first = 0
        for number, (path, length) in enumerate(zip(aloha_files, LENGTHS, strict=True)):
            for t in range(length):
                yield code_bases.lerobot(code_bases.aloha(path), t, deltas, 50, first, number, (-1, ""))
            first += length

    stream = in_order(aloha_files, sample_format="lerobot", delta_timestamps=deltas)
    assert compare(stream, expected()) == 140


def test_formats_on_all_demos_of_a_robomimic_file_equal_their_own_loaders(example_data, tmp_path):
    path = example_data / "robomimic" / "scripted_lift.hdf5"
    check_robomimic(path, packed(path, tmp_path))
    check_robomimic(path, path)


def test_formats_on_all_demos_of_a_libero_file_equal_their_own_loaders(example_data, tmp_path):
    path = example_data / "libero" / "pick_up_the_red_cube_demo.hdf5"
    check_robomimic(path, packed(path, tmp_path), text="pick up the red cube")
    check_robomimic(path, path, text="pick up the red cube")


@pytest.mark.parametrize("name", ["robomimic/human_door", "libero_like/pick_up_the_red_cube_demo"])
def test_formats_on_the_larger_robomimic_files_equal_their_own_loaders(shared_data, tmp_path, name):
    path = shared_data / f"{name}.hdf5"
    check_robomimic(path, packed(path, tmp_path), text="pick up the red cube" if "libero" in name else "")


@pytest.mark.parametrize("name", ["aloha_compressed/episode_0", "aloha_raw/episode_0"])
def test_formats_on_the_larger_aloha_files_equal_their_own_loaders(shared_data, tmp_path, name):
    path = shared_data / f"{name}.hdf5"
    episode, shards = code_bases.aloha(path), packed(path, tmp_path)
    length = len(episode["action"])
    act = (code_bases.act(episode, t, length) for t in range(length))
    assert compare(in_order(shards, sample_format="act"), act) == length
    ilstudio = (code_bases.ilstudio(episode, t, 16, 0, "") for t in range(length))
    assert compare(in_order(shards, sample_format="ilstudio"), ilstudio) == length


def check_robomimic(path: Path, shards: Path, text: str = "") -> None:
    """diffusion_policy and IL-Studio on every window of a file with several demonstrations."""
    episodes = code_bases.robomimic(path)
    starts = [code_bases.diffusion_policy_starts(len(episode["action"]), 4, 2, 3) for episode in episodes]
    horizon = [
        code_bases.diffusion_policy(episode, start, 4, 2)
        for episode, part in zip(episodes, starts, strict=True)
        for start in part
    ]
    assert compare(in_order(shards, sample_format=DiffusionPolicyFormat(4, 2, 3)), horizon) == len(horizon) > 0
    key = next(key for key in ("robot0_joint_pos", "joint_states") if key in episodes[0]["low_dim"])
    samples = [
        code_bases.ilstudio({**episode, "state": episode["low_dim"][key]}, t, 5, number, text)
        for number, episode in enumerate(episodes)
        for t in range(len(episode["action"]))
    ]
    sample_format = IlStudioFormat(state=f"observation.{key}", chunk_size=5)
    assert compare(in_order(shards, sample_format=sample_format), samples) == len(samples)
