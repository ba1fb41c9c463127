"""Sample formats: every window equals what the code base's own loader makes of the same HDF5 file."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import code_bases
import h5py
import numpy as np
import pytest
import torch

import epistream as es
from epistream.errors import OptionError, StateError
from epistream.loader.formats.act import ActFormat
from epistream.loader.formats.base import Padding
from epistream.loader.formats.diffusion_policy import DiffusionPolicyFormat
from epistream.loader.formats.ilstudio import IlStudioFormat
from epistream.loader.formats.lerobot import LeRobotFormat
from epistream.loader.formats.pictures import stacked
from epistream.loader.formats.recycler import Recycler

LENGTHS = [80, 60]


def rows_of(value, row):
    """Row `row` of a batch, whatever it is made of."""
    if isinstance(value, dict):
        return {key: rows_of(item, row) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(rows_of(item, row) for item in value)
    return value[row]


def assert_equal(found, expected, where):
    if isinstance(expected, dict):
        assert set(found) == set(expected), where
        for key, value in expected.items():
            assert_equal(found[key], value, f"{where}, {key}")
    elif isinstance(expected, tuple):
        assert len(found) == len(expected)
        for item, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{where}, {item}")
    elif isinstance(expected, np.ndarray | np.generic):
        assert found.numpy().dtype == expected.dtype, where
        if not np.array_equal(found.numpy(), expected):  # an order of magnitude faster than the assertion
            np.testing.assert_array_equal(found.numpy(), expected, err_msg=where)
    elif isinstance(expected, int):
        assert found.dtype == torch.int64, where
        assert int(found) == expected, where
    else:
        assert found == expected, where


def compare(stream, expected):
    """Every window of an unshuffled stream against `expected`, the samples in order."""
    seen = 0
    expected = iter(expected)
    for batch in stream:
        first = batch[0] if isinstance(batch, tuple) else batch["action"]
        for row in range(len(first)):
            assert_equal(rows_of(batch, row), next(expected), f"window {seen}")
            seen += 1
    assert next(expected, None) is None
    return seen


def in_order(source, **options):
    options = {"batch_size": 16, "shuffle": False, "remainder": "uneven", "split": None, **options}
    return es.EpisodeStream(source, **options)


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


def test_padding_options_set_value_mask_name_and_polarity_each_by_itself(aloha_shards):
    octo = IlStudioFormat(padding=Padding("edge", "{key}_pad_mask", "valid"), chunk_size=3)
    stream = in_order(aloha_shards, sample_format=octo, batch_size=80)
    last = {key: value[-1] for key, value in next(iter(stream)).items()}
    assert last["action_pad_mask"].tolist() == [True, False, False]
    assert torch.equal(last["action"][0], last["action"][2])
    assert "is_pad" not in last
    without = IlStudioFormat(padding=Padding("zero", None))
    assert not [key for key in next(iter(in_order(aloha_shards, sample_format=without))) if "pad" in key]


def test_format_overrides_the_pad_of_the_users_window_and_keeps_its_offsets(aloha_shards):
    window = es.Window(action=range(5), pad="edge")
    stream = in_order(aloha_shards, sample_format="ilstudio", window=window, batch_size=80)
    batch = next(iter(stream))
    assert tuple(batch["action"].shape) == (80, 5, 14)
    assert not batch["action"][-1][1:].any()


def test_ilstudio_and_lerobot_bytes_are_views_of_the_batch_memory(aloha_shards):
    addresses = {}

    def note(batch):
        for name in ("observation.images.angle", "observation.images.top", "observation.state", "action"):
            addresses[name] = batch[name].data_ptr()
        return IlStudioFormat()(batch, stream._finisher._context)

    stream = in_order(
        aloha_shards,
        sample_format=note,
        features=["observation.images.angle", "observation.images.top", "observation.state", "action"],
    )
    batch = next(iter(stream))
    assert batch["image"][:, 0].data_ptr() == addresses["observation.images.angle"]
    assert batch["image"][:, 1].data_ptr() == addresses["observation.images.top"]
    assert batch["state"].data_ptr() == addresses["observation.state"]
    assert batch["action"].data_ptr() == addresses["action"]
    stream = in_order(aloha_shards, sample_format=LeRobotFormat(images="uint8"), features=["observation.images.top"])
    picture = next(iter(stream))["observation.images.top"]
    assert picture.shape == (16, 3, 480, 640)
    assert picture.stride()[1] == 1  # channels first in name only


def test_stacked_cameras_hold_on_to_every_batch_of_the_ring(aloha_shards):
    stream = es.EpisodeStream(aloha_shards, batch_size=8, sample_format="ilstudio")
    direct = list(stream)
    stream.set_epoch(0)
    with es.StreamingLoader(stream, num_workers=1, prefetch=1) as loader:
        kept = [batch["image"] for batch in loader]  # nothing but the stacked view is kept alive
    assert len(kept) == len(direct) == 17
    for one, other in zip(kept, direct, strict=True):
        assert torch.equal(one, other["image"])


@pytest.mark.parametrize("spacing", ["even", "uneven", "descending", "other_dtype"])
def test_stacked_equals_stack_however_the_arrays_lie(spacing):
    block = torch.arange(4096, dtype=torch.int64).to(torch.uint8)
    starts = {"even": (0, 100, 200), "uneven": (0, 100, 300), "descending": (200, 100, 0), "other_dtype": (0, 1, 2)}
    parts = [block[start : start + 36].view(1, 3, 4, 3) for start in starts[spacing]]
    if spacing == "other_dtype":
        parts = [part.to(torch.float32) for part in parts]
    result = stacked(parts)
    assert torch.equal(result, torch.stack(parts, dim=1).movedim(-1, -3))
    assert (result.data_ptr() == block.data_ptr()) == (spacing == "even")


def test_is_repeat_is_added_only_where_windows_repeat(aloha_shards):
    for name in ("ilstudio", "lerobot", "diffusion_policy"):
        padded = in_order(aloha_shards, sample_format=name, remainder="pad", batch_size=9)
        assert "is_repeat" in next(iter(padded))
        assert "is_repeat" not in next(iter(in_order(aloha_shards, sample_format=name, batch_size=9)))


@pytest.mark.parametrize("name", ["act", "diffusion_policy", "lerobot", "ilstudio"])
def test_stream_with_a_format_survives_pickling(aloha_shards, name):
    stream = es.EpisodeStream(aloha_shards, sample_format=name, batch_size=2)
    again = pickle.loads(pickle.dumps(stream))
    assert_same(next(iter(stream)), next(iter(again)))


def assert_same(one, other):
    if isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, tuple):
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_format": "ilstudo"}, "Did you mean 'ilstudio'?"),
        ({"sample_format": 3}, "or a function"),
        ({"sample_format": "act", "squeeze": True}, "Leave squeeze out"),
        ({"sample_format": "act", "window": es.Window(obs=[-1, 0])}, "[-1, 0], wanted a single one"),
        ({"sample_format": "act", "features": ["observation.state", "action"]}, "no cameras, wanted cameras"),
        ({"sample_format": "ilstudio", "features": ["observation.images.top", "action"]}, "'observation.state'"),
        ({"sample_format": IlStudioFormat(state="observation.effort")}, "observation.effort"),
        (
            {"sample_format": ActFormat(lag_one_step=True), "window": es.Window(action=range(4))},
            "range(-1, chunk_size)",
        ),
        ({"sample_format": "diffusion_policy", "features": ["observation.state"]}, "action"),
    ],
)
def test_stream_with_an_impossible_format_is_refused_at_construction(aloha_shards, options, message):
    with pytest.raises(OptionError) as caught:
        es.EpisodeStream(aloha_shards, **options)
    assert message in str(caught.value)


def test_cameras_of_several_sizes_are_refused_by_name(aloha_shards, tmp_path):
    from handmade import encoded, members, picture, write_tar

    wrist = encoded(picture(0, 0)[:12, :16], "jpeg")
    pairs = members(0, 2, meta={}) + [(f"ep-000000000.observation.images.wrist.{t:06d}.jpg", wrist) for t in (0, 1)]
    tar = write_tar(tmp_path / "shard-000000.tar", pairs)
    with pytest.raises(OptionError, match=r"wrist \(12, 16, 3\), wanted cameras of one size"):
        es.EpisodeStream(str(tar), sample_format=IlStudioFormat(state="action"))


def test_diffusion_policy_with_a_horizon_too_short_is_refused():
    with pytest.raises(OptionError, match="horizon >= num_obs_steps - 1"):
        DiffusionPolicyFormat(8, 2, 8)


def test_padding_with_unknown_words_is_refused():
    with pytest.raises(OptionError, match="'repeat'"):
        Padding("repeat", None)


def test_cameras_of_several_sizes_stack_once_they_are_resized_alike(tmp_path):
    with h5py.File(tmp_path / "episode_0.hdf5", "w") as file:
        file.attrs["sim"] = True
        file["observations/qpos"] = file["action"] = np.zeros((3, 2), np.float32)
        file["observations/images/top"] = np.full((3, 24, 32, 3), 9, np.uint8)
        file["observations/images/wrist"] = np.full((3, 12, 16, 3), 200, np.uint8)
    path = tmp_path / "episode_0.hdf5"
    batch = next(iter(es.EpisodeStream(path, batch_size=3, sample_format="ilstudio", image_size=(6, 8))))
    assert batch["image"].shape == (3, 2, 3, 6, 8)
    assert batch["image"][:, 0].unique().tolist() == [9]
    assert batch["image"][:, 1].unique().tolist() == [200]


def test_converted_batches_that_are_kept_are_never_overwritten(aloha_shards):
    features = ["observation.images.top", "observation.state", "action"]
    stream = es.EpisodeStream(aloha_shards, batch_size=10, sample_format="act", features=features)
    kept = [image for image, _, _, _ in stream]
    copies = [image.clone() for image, _, _, _ in stream]
    assert len(kept) == 14
    for one, other in zip(kept, copies, strict=True):
        assert torch.equal(one, other)


def test_recycled_memory_is_used_again_only_after_the_last_view_died():
    recycler = Recycler()
    first = recycler.empty((4, 1000))
    address, view = first.data_ptr(), first[1:3].permute(1, 0)
    del first
    second = recycler.empty((4, 1000))
    assert second.data_ptr() != address
    view.fill_(1)
    second.fill_(2)
    assert view.unique().tolist() == [1]
    del view
    assert recycler.empty((4, 1000)).data_ptr() == address


def test_recycler_keeps_few_blocks_and_serves_threads():
    recycler = Recycler()
    many = [recycler.empty((n, 10)) for n in range(1, 30)]
    del many
    assert len(recycler._free) <= 4

    def use(value):
        for _ in range(300):
            block = recycler.empty((64,))
            block.fill_(value)
            assert block.unique().tolist() == [value]
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(use, range(8)))
    assert pickle.loads(pickle.dumps(recycler))._free == []
    assert recycler.empty((0, 3)).shape == (0, 3)


def test_window_must_fit_is_part_of_the_state_and_refuses_nonsense(aloha_shards):
    streams = [
        es.EpisodeStream(aloha_shards, features=["action"], window=es.Window(action=range(4), must_fit=must_fit))
        for must_fit in (None, (0, 2), (-2, 0))
    ]
    assert [stream.num_windows for stream in streams] == [140, 136, 136]
    with pytest.raises(StateError, match="window is"):
        streams[2].load_state_dict(streams[1].state_dict())
    for nonsense in ((1, 2), (-2, -1)):
        with pytest.raises(OptionError, match="must_fit"):
            es.Window(must_fit=nonsense)
