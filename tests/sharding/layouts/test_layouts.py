import h5py
import numpy as np
import pytest
import simplejpeg
from hdf5_files import aloha_jpeg, aloha_raw, jpeg, picture, robomimic

from epistream.errors import LayoutError, OptionError, SourceError
from epistream.sharding.layouts.reading import open_source, read_array, read_frames, read_jpegs
from epistream.sharding.layouts.registry import detect, layout_by_name, scan_source


def only(path, layout=None):
    scan = scan_source(path, layout)
    assert scan.faults == ()
    (episode,) = scan.episodes
    return scan, episode


def fields(episode):
    return {field.feature.name: field for field in episode.fields}


def fault(path, layout=None):
    scan = scan_source(path, layout)
    assert scan.episodes == ()
    (message,) = scan.faults
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("make", "layout"),
    [
        (aloha_raw, "act-sim"),
        (lambda path: aloha_raw(path, sim=False), "aloha"),
        (aloha_jpeg, "act-plus-plus"),
        (lambda path: aloha_jpeg(path, base_action=True), "mobile-aloha"),
        (lambda path: robomimic(path, {"demo_0": 3}), "robomimic"),
    ],
)
def test_layout_is_found_from_the_file(tmp_path, make, layout):
    assert only(make(tmp_path / "a.hdf5"))[0].layout == layout


@pytest.mark.parametrize(
    ("name", "layout", "lengths"),
    [
        ("aloha/episode_0.hdf5", "act-plus-plus", [80]),
        ("mobile_aloha/episode_0.hdf5", "mobile-aloha", [24]),
        ("aloha_sim/episode_0.hdf5", "act-sim", [2]),
        ("robomimic/scripted_lift.hdf5", "robomimic", [9, 7, 6]),
        ("libero/pick_up_the_red_cube_demo.hdf5", "libero", [4, 3, 3]),
    ],
)
def test_layout_of_real_files(example_data, name, layout, lengths):
    scan = scan_source(example_data / name)
    assert scan.faults == ()
    assert (scan.layout, [episode.length for episode in scan.episodes]) == (layout, lengths)


@pytest.mark.parametrize("name", ["aloha", "mobile_aloha"])
def test_jpeg_rows_of_real_files_are_the_bytes_up_to_the_padding(example_data, name):
    path = example_data / name / "episode_0.hdf5"
    _, episode = only(path)
    with h5py.File(path) as file:
        for camera in ("top", "angle"):
            rows = file[f"observations/images/{camera}"][()]
            field = fields(episode)[f"observation.images.{camera}"]
            found = list(read_jpegs(file, field, episode.length))
            assert found == [row.tobytes().rstrip(b"\0") for row in rows]
            lengths = [len(data) for data in found]
            # Alphabetical in the one, in recording order in the other: no file says which.
            assert lengths in file["compress_len"][()].astype(int).tolist()


def test_jpeg_cameras_are_decoded_as_opencv_does_and_at_50_hz(tmp_path):
    _, episode = only(aloha_jpeg(tmp_path / "a.hdf5"))
    camera = fields(episode)["observation.images.top"].feature
    assert (camera.codec, camera.jpeg_channels, camera.shape, camera.fps) == ("jpeg", "bgr", (24, 32, 3), 50.0)
    assert camera.source_path == "observations/images/top"


def test_aloha_arrays_have_their_names_and_types(tmp_path):
    path = aloha_jpeg(tmp_path / "a.hdf5", base_action=True)
    _, episode = only(path)
    arrays = {name: field for name, field in fields(episode).items() if field.feature.kind == "array"}
    expected = {
        "observation.state": "observations/qpos",
        "observation.qvel": "observations/qvel",
        "observation.effort": "observations/effort",
        "action": "action",
        "base_action": "base_action",
    }
    assert {name: field.feature.source_path for name, field in arrays.items()} == expected
    with h5py.File(path) as file:
        for field in arrays.values():
            values = read_array(file, field, episode.length)
            assert values.dtype == file[field.path].dtype
            np.testing.assert_array_equal(values, file[field.path][()])


def test_depth_camera_beside_jpeg_cameras_stays_raw(tmp_path):
    path = aloha_jpeg(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file["observations/images/top_depth"] = np.arange(5 * 24 * 32, dtype=np.uint16).reshape(5, 24, 32)
    _, episode = only(path)
    feature = fields(episode)["observation.images.top_depth"].feature
    assert (feature.dtype, feature.shape, feature.codec) == ("uint16", (24, 32, 1), "raw")
    # compress_len has no row for it, and the other cameras do not mind.
    with h5py.File(path) as file:
        assert len(list(read_jpegs(file, fields(episode)["observation.images.top"], 5))) == 5


@pytest.mark.parametrize("kind", ["fixed", "variable"])
def test_jpeg_rows_as_strings_of_bytes(tmp_path, kind):
    rows = [jpeg(picture(step)) for step in range(4)]
    path = aloha_raw(tmp_path / "a.hdf5", steps=4)
    with h5py.File(path, "r+") as file:
        for camera in ("top", "angle"):
            del file[f"observations/images/{camera}"]
            if kind == "fixed":
                data = np.array(rows, dtype=f"S{max(map(len, rows)) + 3}")
                file[f"observations/images/{camera}"] = data
            else:
                found = file.create_dataset(f"observations/images/{camera}", (4,), dtype=h5py.vlen_dtype(np.uint8))
                for step, row in enumerate(rows):
                    found[step] = np.frombuffer(row, np.uint8)
    _, episode = only(path)
    with h5py.File(path) as file:
        assert list(read_jpegs(file, fields(episode)["observation.images.top"], 4)) == rows


def test_frames_are_read_in_slabs_of_any_size(tmp_path, monkeypatch):
    path = aloha_raw(tmp_path / "a.hdf5", steps=7)
    _, episode = only(path)
    field = fields(episode)["observation.images.top"]
    with h5py.File(path) as file:
        expected = file[field.path][()]
        for slab_bytes in (1, 5000, 1 << 20):
            monkeypatch.setattr("epistream.sharding.layouts.reading.SLAB_BYTES", slab_bytes)
            np.testing.assert_array_equal(np.stack(list(read_frames(file, field, 7))), expected)


def test_grey_jpeg_becomes_a_camera_of_three_channels(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5", steps=1, cameras=("top",))
    data = simplejpeg.encode_jpeg(np.zeros((24, 32, 1), np.uint8), colorspace="GRAY", colorsubsampling="Gray")
    with h5py.File(path, "r+") as file:
        del file["observations/images/top"]
        file["observations/images/top"] = np.frombuffer(data, np.uint8)[None]
    assert fields(only(path)[1])["observation.images.top"].feature.shape == (24, 32, 3)


@pytest.mark.parametrize("where", ["instruction", "language_raw"])
@pytest.mark.parametrize(
    ("value", "tasks"),
    [
        (b"fold the towel", ("fold the towel",)),
        ([b"fold", b"fold it"], ("fold", "fold it")),
        (b'["a", "b"]', ("a", "b")),
        (b'"quoted"', ("quoted",)),
        (b"", ()),
    ],
)
def test_instructions_of_every_form_are_texts(tmp_path, where, value, tasks):
    path = aloha_raw(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file[where] = value
    assert only(path)[1].tasks == tasks


def test_what_is_not_packed_is_named(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5")
    with h5py.File(path, "r+") as file:
        file["observations/notes"] = np.array([b"text"] * 5)
        file["calibration"] = np.eye(4)
        file.attrs["model"] = "x" * 20_000
    assert only(path)[1].left_out == (
        "/calibration",
        "/observations/notes (texts, wanted numbers)",
        "/@model",
    )


def test_demos_are_in_the_order_of_their_numbers(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"demo_10": 1, "demo_2": 2, "demo_1": 3})
    assert [episode.group for episode in scan_source(path).episodes] == [
        "/data/demo_1",
        "/data/demo_2",
        "/data/demo_10",
    ]


def test_robomimic_features_leave_out_next_obs_and_simulator_states(tmp_path):
    _, episode = only(robomimic(tmp_path / "a.hdf5", {"demo_0": 2}))
    found = {name: field.feature.source_path for name, field in fields(episode).items()}
    assert found == {
        "observation.images.agentview": "obs/agentview_image",
        "observation.robot0_eef_pos": "obs/robot0_eef_pos",
        "action": "actions",
        "reward": "rewards",
    }
    assert episode.left_out == ("/data/demo_0/next_obs", "/data/demo_0/states")
    assert {field.feature.fps for field in episode.fields} == {20.0}
    assert episode.attributes["num_samples"] == 2


@pytest.mark.parametrize(
    ("masks", "splits"),
    [
        ({"train": ["demo_0"], "valid": ["demo_1"]}, ["train", "val", "other"]),
        ({"train": ["demo_0", "demo_2"], "test": ["demo_1"], "50_percent": ["demo_0"]}, ["train", "test", "train"]),
        ({"20_percent": ["demo_0"]}, [None, None, None]),
        ({"train": ["demo_0"]}, [None, None, None]),
    ],
)
def test_masks_are_splits_only_if_they_divide_the_demos(tmp_path, masks, splits):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 1, "demo_1": 1, "demo_2": 1}, masks)
    assert [episode.split for episode in scan_source(path).episodes] == splits


def test_demo_in_two_splits_is_a_fault(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 1}, {"train": ["demo_0"], "valid": ["demo_0"]})
    assert "train and val, wanted one split" in fault(path)


@pytest.mark.parametrize(
    "instruction",
    ['"pick up the cup"', '["pick", "up", "the", "cup"]', r'"\"pick up the cup\""', '["pick up the cup"]'],
)
def test_libero_instruction_of_every_form_is_one_text_and_pictures_are_turned(tmp_path, instruction):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 2}, cameras=("agentview_rgb", "eye_in_hand_rgb"))
    with h5py.File(path, "r+") as file:
        file["data"].attrs["bddl_file_name"] = "x.bddl"
        file["data"].attrs["problem_info"] = f'{{"language_instruction": {instruction}}}'
    scan, episode = only(path)
    assert (scan.layout, episode.tasks) == ("libero", ("pick up the cup",))
    cameras = [field.feature for field in episode.fields if field.feature.kind == "frames"]
    assert [(camera.name, camera.rotate) for camera in cameras] == [
        ("observation.images.agentview", 180),
        ("observation.images.eye_in_hand", 180),
    ]


def test_robocasa_instruction_is_found(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 2})
    with h5py.File(path, "r+") as file:
        file["data/demo_0"].attrs["ep_meta"] = '{"lang": "open the drawer"}'
    assert only(path)[1].tasks == ("open the drawer",)


def change(path, edit):
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def replaced(name, value):
    def edit(file):
        del file[name]
        file[name] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (replaced("observations/qpos", np.zeros((4, 14))), "/observations/qpos: 4 steps, wanted 5 as in /action"),
        (replaced("observations/images/top", np.zeros((6, 8, 8, 3), np.uint8)), "/observations/images/top: 6 steps"),
        (replaced("observations/images/top", np.zeros((5, 3, 24, 32), np.uint8)), "wanted channels last"),
        (replaced("observations/images/top", np.zeros((5, 99), np.uint8)), "only zeros"),
    ],
)
def test_aloha_file_that_breaks_its_layout_is_a_fault_with_path_found_and_wanted(tmp_path, edit, words):
    assert words in fault(change(aloha_raw(tmp_path / "a.hdf5"), edit))


def test_episode_without_steps_is_a_fault(tmp_path):
    assert "no steps, wanted at least 1" in fault(aloha_raw(tmp_path / "a.hdf5", steps=0))


def test_one_bad_demo_leaves_the_others(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 2, "demo_1": 3, "demo_2": 4})
    change(path, replaced("data/demo_1/obs/agentview_image", np.zeros((2, 8, 8, 3), np.uint8)))
    scan = scan_source(path)
    assert [episode.group for episode in scan.episodes] == ["/data/demo_0", "/data/demo_2"]
    (message,) = scan.faults
    assert message.startswith(
        f"{path}: /data/demo_1/obs/agentview_image: 2 steps, wanted 3 as in /data/demo_1/actions. "
    )


def test_demo_shorter_than_it_says_is_a_fault(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 2})
    with h5py.File(path, "r+") as file:
        file["data/demo_0"].attrs["num_samples"] = 3
    assert "2 actions, wanted 3 as in its attribute num_samples" in fault(path)


@pytest.mark.parametrize("name", ["observations/images/wrist", "observations/tactile"])
def test_link_that_leads_nowhere_is_a_fault_that_names_it(tmp_path, name):
    def edit(file):
        file[name] = h5py.SoftLink("/none")

    message = fault(change(aloha_raw(tmp_path / "a.hdf5"), edit))
    assert message.startswith(f"/{name}: cannot be opened")


def test_feature_without_width_is_left_out(tmp_path):
    def edit(file):
        file["observations/nothing"] = np.zeros((5, 0), np.float32)

    assert only(change(aloha_raw(tmp_path / "a.hdf5"), edit))[1].left_out == (
        "/observations/nothing (rows without values, wanted numbers)",
    )


def test_damaged_chunk_names_the_file_the_dataset_and_the_rows(tmp_path, monkeypatch):
    path = aloha_raw(tmp_path / "a.hdf5", steps=8)
    with h5py.File(path, "r+") as file:
        frames = file["observations/images/top"][()]
        del file["observations/images/top"]
        chunks = (1, *frames.shape[1:])
        found = file.create_dataset("observations/images/top", data=frames, compression="gzip", chunks=chunks)
        place = found.id.get_chunk_info(5).byte_offset
    data = bytearray(path.read_bytes())
    data[place + 20 : place + 60] = bytes(40)
    path.write_bytes(data)
    _, episode = only(path)
    words = f"^{path}: /observations/images/top, rows 5 to 5: cannot be read"
    monkeypatch.setattr("epistream.sharding.layouts.reading.SLAB_BYTES", 1)
    with open_source(path) as file:
        found = read_frames(file, fields(episode)["observation.images.top"], 8)
        for step in range(5):
            np.testing.assert_array_equal(next(found), frames[step])
        with pytest.raises(SourceError, match=words):
            next(found)


def test_two_names_that_differ_in_case_only_are_a_fault(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5", cameras=("top", "Top"))
    assert "would be named 'observation.images.top', and so would" in fault(path)


def test_unknown_layout_lists_what_was_looked_for_and_what_was_found(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        file["rgb"] = np.zeros((3, 2))
    message = fault(tmp_path / "a.hdf5")
    assert "found /rgb float64 (3, 2)" in message
    for name in (
        "robomimic",
        "libero",
        "act-sim",
        "mobile-aloha",
        "epistream layouts detect",
        "--layout-file",
        "layout=",
    ):
        assert name in message


def test_layout_insisted_on_must_fit(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5")
    assert "wanted robomimic: /data/<demo>/actions" in fault(path, "robomimic")
    assert only(path, "act-sim")[0].layout == "act-sim"


def test_layout_of_unknown_name_is_refused():
    with pytest.raises(OptionError, match="'robmimic': unknown, wanted one of libero, robomimic"):
        layout_by_name("robmimic")


def test_file_that_is_missing_torn_or_no_hdf5_is_a_fault(tmp_path):
    assert "no such file" in fault(tmp_path / "none.hdf5")
    (tmp_path / "text.hdf5").write_text("hello")
    assert "cannot be read as HDF5" in fault(tmp_path / "text.hdf5")
    whole = aloha_raw(tmp_path / "a.hdf5").read_bytes()
    (tmp_path / "torn.hdf5").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as HDF5" in fault(tmp_path / "torn.hdf5")
    (tmp_path / "folder.hdf5").mkdir()
    assert "a folder" in fault(tmp_path / "folder.hdf5")


def test_real_broken_file_is_a_fault(shared_data):
    assert "holds lan, which cannot be opened" in fault(shared_data / "ilstudio" / "tmp.hdf5")


def test_errors_while_reading_name_the_file(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5")
    with pytest.raises(LayoutError, match=f"^{path}: top is odd$"), open_source(path):
        raise LayoutError("top is odd")
    with pytest.raises(SourceError, match=f"^{path}: cannot be read as HDF5 "), open_source(path):
        raise OSError("Can't synchronously read data")


def test_detect_leaves_no_open_file(tmp_path):
    path = aloha_raw(tmp_path / "a.hdf5")
    with open_source(path) as file:
        detect(file)
    with h5py.File(path, "r+"):
        pass
