"""Keys of files as names of features: any key has one, no two have the same, and options act before that is judged."""

import h5py
import numpy as np
import pytest
from hdf5_files import aloha_raw, robomimic

import epistream as es
from epistream.errors import LayoutError, PackError
from epistream.sharding.format.features import Feature
from epistream.sharding.layouts.names import feature_name, made_names, usable_name
from epistream.sharding.pack.pack import pack


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


CAMERAS = {
    "top": "top",
    "0": "0",
    "12391924_left": "12391924_left",
    "Cam High": "cam_high",
    "left.rgb": "left.rgb",
    "317222071234": "cam_317222071234",
    "left.000001": "left.cam_000001",
    "相机": "u76f8_u673a",
    "x" * 70: "x" * 44 + "_a809e0df",
}


@pytest.mark.parametrize("key", CAMERAS)
def test_a_camera_of_any_name_packs_and_streams_under_a_usable_one(tmp_path, key, caplog):
    path = aloha_raw(tmp_path / "a.hdf5", 3, cameras=("top", "other"))
    with h5py.File(path, "r+") as file:
        file.move("observations/images/other", "kept")
        del file["observations/images/top"]
        file[f"observations/images/{key}"] = np.full((3, 16, 16, 3), 7, np.uint8)
        del file["kept"]
    wanted = f"observation.images.{CAMERAS[key]}"
    report = pack(path, tmp_path / "out", codec="raw")
    assert [name for name in report.features if "images" in name] == [wanted]
    told = [record.getMessage() for record in caplog.records]
    is_made = CAMERAS[key] not in (key, "cam_high")
    assert len(told) == is_made
    assert all(wanted in text and f"observations/images/{key}" in text for text in told)
    for source in (path, tmp_path / "out"):
        batch = next(iter(es.EpisodeStream(str(source), batch_size=3)))
        assert int(batch[wanted].max()) == int(batch[wanted].min()) == 7


@pytest.mark.parametrize(
    "key", ["task", "meta", "episode_index", "-force", "a/task", "x" * 300, "123456789", "Ä", "a\nb"]
)
def test_numbers_of_any_name_pack_and_stream(tmp_path, key):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 4})
    with h5py.File(path, "r+") as file:
        file[f"data/demo_0/{key}"] = np.arange(4)
    report = pack(path, tmp_path / "out")
    (name,) = set(report.features) - {"action", "reward", "observation.images.agentview", "observation.robot0_eef_pos"}
    for source in (path, tmp_path / "out"):
        batch = next(iter(es.EpisodeStream(str(source), batch_size=4, shuffle=False)))
        assert batch[name].flatten().tolist() == [0, 1, 2, 3]


def test_every_text_has_a_usable_name():
    for text in (
        "",
        ".",
        "..",
        "-",
        "meta",
        "__key__",
        "a" * 500,
        "a." * 90,
        "1234567",
        "a.1234567",
        "_",
        "\n",
        "é",
        "日本語",
    ):
        for is_camera in (False, True):
            for head in ("", "observation.", "observation.images."):
                Feature(usable_name(head + feature_name(text), is_camera=is_camera), "array", "int8", (1,), "npy")


def test_only_names_that_were_made_up_are_told():
    def one(name, path):
        return Feature(name, "array", "int8", (1,), "npy", source_path=path)

    assert made_names([one("observation.state", "observations/qpos"), one("a.cam_high", "a/cam_high")]) == []
    assert made_names([one("observation.key_123456", "obs/123456")]) == ["obs/123456 is observation.key_123456"]


def two_fronts(folder):
    path = aloha_raw(folder / "a.hdf5", 3, cameras=("front",))
    with h5py.File(path, "r+") as file:
        file["observations/images/Front"] = np.full((3, 24, 32, 3), 7, np.uint8)
    return path


@pytest.mark.parametrize("old", ["Front", "observations/images/Front", "/observations/images/Front"])
def test_two_names_that_become_one_are_refused_until_one_is_renamed(tmp_path, old):
    path = two_fronts(tmp_path)
    with pytest.raises(PackError, match=r"would be named 'observation\.images\.front', and so would"):
        pack(path, tmp_path / "out")
    with pytest.raises(LayoutError, match=r"would be named 'observation\.images\.front', and so would"):
        es.open_dataset(path)
    report = pack(path, tmp_path / "out", rename={old: "observation.images.left"}, codec="raw")
    batch = next(iter(es.EpisodeStream(str(tmp_path / "out"), batch_size=3)))
    assert int(batch["observation.images.left"].min()) == 7
    assert "observation.images.front" in report.features


@pytest.mark.parametrize(
    "old", ["317222071234", "observation.images.cam_317222071234", "observations/images/317222071234"]
)
def test_a_made_up_name_can_be_replaced_by_the_key_the_path_or_itself(tmp_path, old, caplog):
    path = aloha_raw(tmp_path / "a.hdf5", 3, cameras=("317222071234",))
    report = pack(path, tmp_path / "out", rename={old: "observation.images.left"})
    assert "observation.images.left" in report.features
    assert caplog.records == []


def test_numbers_are_renamed_by_their_key_unless_it_is_the_name_of_another(tmp_path):
    path = robomimic(tmp_path / "a.hdf5", {"demo_0": 4})
    with h5py.File(path, "r+") as file:
        file["data/demo_0/obs/action"] = np.zeros((4, 2))
    report = pack(path, tmp_path / "out", rename={"robot0_eef_pos": "observation.state", "action": "control"})
    assert {"observation.state", "control", "observation.action"} <= set(report.features)


@pytest.mark.parametrize("options", [{"drop": "Front"}, {"drop": "observations/images/F*"}, {"cameras": "front"}])
def test_what_is_dropped_or_not_chosen_is_no_fault(tmp_path, options):
    path = two_fronts(tmp_path)
    if "cameras" in options:
        with h5py.File(path, "r+") as file:  # both are called front
            del file["observations/images/Front"]
            file["observations/images/broken"] = np.zeros((2, 24, 32, 3), np.uint8)
    report = pack(path, tmp_path / "out", codec="raw", **options)
    assert [name for name in report.features if "images" in name] == ["observation.images.front"]
