"""Lists of unlike datasets: with `features=` they are one stream of what they share, value by value, and resume."""

import h5py
import numpy as np
import pytest
from hdf5_files import aloha_jpeg, aloha_raw

import epistream as es
from epistream.errors import FormatError, OptionError

SHARED = ["action", "observation.state"]
LENGTHS = (5, 7, 4)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three files of 14 joints: other cameras, other codecs, and one with a base."""
    folder = tmp_path_factory.mktemp("unlike")
    return [
        aloha_raw(folder / "a.hdf5", LENGTHS[0], seed=1),
        aloha_jpeg(folder / "b.hdf5", LENGTHS[1], seed=2, cameras=("top", "wrist")),
        aloha_jpeg(folder / "c.hdf5", LENGTHS[2], seed=3, cameras=("top",), base_action=True),
    ]


@pytest.fixture(scope="module", params=["shards", "files", "a folder", "both"])
def source(request, files, tmp_path_factory):
    if request.param == "files":
        return files
    if request.param == "a folder":
        return files[0].parent
    out = tmp_path_factory.mktemp("packed")
    for file in files:
        es.pack(file, out / file.stem, fps=50)
    packed = [out / file.stem for file in files]
    return packed if request.param == "shards" else [files[0], files[1], packed[2]]


def recorded(files, name):
    rows = []
    for path in files:
        with h5py.File(path) as file:
            rows.append(file[name][:])
    return rows


def test_what_is_shared_is_streamed_and_everything_else_ignored(files, source):
    stream = es.EpisodeStream(source, features=SHARED, batch_size=3, shuffle=False, remainder="uneven")
    actions, states = recorded(files, "action"), recorded(files, "observations/qpos")
    seen = 0
    for batch in stream:
        assert not any("images" in key for key in batch)
        rows = zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True)
        for row, (episode, step) in enumerate(rows):
            np.testing.assert_array_equal(batch["action"][row, 0].numpy(), actions[episode][step])
            np.testing.assert_array_equal(batch["observation.state"][row, 0].numpy(), states[episode][step])
            seen += 1
    assert seen == sum(LENGTHS)


def test_statistics_are_those_of_all_parts_together(files, source):
    statistics = es.open_dataset(source, features=SHARED).statistics
    joined = np.concatenate(recorded(files, "action")).astype(np.float64)
    assert statistics["action"]["count"] == sum(LENGTHS)
    np.testing.assert_allclose(statistics["action"]["mean"], joined.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(statistics["action"]["std"], joined.std(axis=0), rtol=1e-4)
    assert "base_action" not in statistics


def test_unlike_parts_are_refused_with_the_difference_and_what_they_share_works(source):
    with pytest.raises(FormatError) as caught:
        es.EpisodeStream(source)
    text = str(caught.value)
    assert "observation.images.angle" in text
    assert text.count("observation.qvel") == 1
    names = eval(text.partition("features=")[2].partition("]")[0] + "]")
    assert es.EpisodeStream(source, features=names[-1:]).num_windows == sum(LENGTHS)
    with pytest.raises(FormatError, match=r"observation\.images\.angle"):
        es.EpisodeStream(source, features="observation.images.*")


def test_states_hold_whatever_shared_features_are_named_and_resume_exactly(source):
    def make(features):
        return es.EpisodeStream(source, features=features, batch_size=2, seed=5)

    whole = [batch["step_index"].tolist() for batch in make(SHARED)]
    stream = make(SHARED)
    iterator = iter(stream)
    first = [next(iterator)["step_index"].tolist() for _ in range(3)]
    again = make(["action*"])
    again.load_state_dict(stream.state_dict())
    assert first + [batch["step_index"].tolist() for batch in again] == whole


def test_names_that_no_part_has_are_listed_with_what_is_shared(source):
    with pytest.raises(OptionError, match=r"'acton'.*'observation\.state'.*Did you mean 'action'"):
        es.EpisodeStream(source, features=["acton"])


def test_like_datasets_are_what_they_were_without_names(aloha_shards):
    plain, named = es.open_dataset([aloha_shards] * 2), es.open_dataset([aloha_shards] * 2, features=["action"])
    assert plain.fingerprint == named.fingerprint
    assert plain.features == named.features


def test_odd_file_is_left_out_only_for_what_is_named(files, caplog):
    stream = es.EpisodeStream(files, features=["action"], on_bad="skip")
    assert stream.num_windows == sum(LENGTHS)
    assert not stream.job.dataset.skipped
    odd = es.EpisodeStream(files, features=["*action*"], on_bad="skip")
    [reason] = odd.job.dataset.skipped.values()
    assert "also has base_action" in reason
    assert "images" not in reason


def test_datasets_that_share_nothing_are_told_so(files, tmp_path):
    with h5py.File(files[0]) as file, h5py.File(tmp_path / "z.hdf5", "w") as other:
        other["action"] = file["action"][:, :3]
        other["observations/qpos"] = file["observations/qpos"][:, :2]
        other["observations/images/far"] = file["observations/images/top"][:, :4, :4]
    with pytest.raises(FormatError, match=r"They share no feature: stream them one by one"):
        es.EpisodeStream([files[0], tmp_path / "z.hdf5"])
