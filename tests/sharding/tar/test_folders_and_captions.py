"""Foreign tars whose frames lie in folders and whose instructions are texts: what is read is what tarfile finds."""

import io
import re

import numpy as np
import pytest
from handmade import actions, encoded, members, npy, picture, places, write_tar
from PIL import Image

import epistream as es
from epistream.errors import FormatError
from epistream.sharding.check.verify import verify
from epistream.sharding.tar.index_tar import index_tar
from epistream.sharding.tar.reindex import reindex


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rows(name="ep0.action.npy", length=3, episode=0):
    return [(name, npy(actions(episode, length)))]


def frames(start, numbers=range(3), kind="jpeg", suffix=None, digits=6, episode=0):
    suffix = suffix or {"jpeg": "jpg"}.get(kind, kind)
    return [(f"{start}{n:0{digits}d}.{suffix}", encoded(picture(episode, n), kind)) for n in numbers]


# Members of a tar; then key, and of each camera what its members begin with, for the first episode.
FOUND = {
    "beside the rows": ([*rows(), *frames("ep0/cam/")], "ep0", {"cam": "ep0/cam/"}),
    "before the rows": ([*frames("ep0/cam/"), *rows()], "ep0", {"cam": "ep0/cam/"}),
    "two cameras of two kinds": (
        [*rows(), *frames("ep0/top/", kind="png"), *frames("ep0/hand/", kind="webp")],
        "ep0",
        {"top": "ep0/top/", "hand": "ep0/hand/"},
    ),
    "a camera in a folder and one beside": (
        [*rows(), *frames("ep0/top/"), *frames("ep0.hand.")],
        "ep0",
        {"top": "ep0/top/", "hand": "ep0.hand."},
    ),
    "nested": ([*rows(), *frames("ep0/images/top/", kind="png")], "ep0", {"images.top": "ep0/images/top/"}),
    "folder with dots": (
        [*rows(), *frames("ep0/observation.images.top/")],
        "ep0",
        {"observation.images.top": "ep0/observation.images.top/"},
    ),
    "episode below folders with dots": (
        [*rows("run.1/v2.0/ep0.action.npy"), *frames("run.1/v2.0/ep0/cam/")],
        "run.1/v2.0/ep0",
        {"cam": "run.1/v2.0/ep0/cam/"},
    ),
    "folder with the key before a dot": ([*rows(), *frames("ep0.cam/")], "ep0", {"cam": "ep0.cam/"}),
    "no folder of its own": ([*rows(), *frames("ep0/")], "ep0", {"image": "ep0/"}),
    "rows in the folder too": (
        [*rows("lab/ep0/action.npy"), *frames("lab/ep0/cam/")],
        "lab/ep0",
        {"cam": "lab/ep0/cam/"},
    ),
    "the tar is the episode": ([*rows("action.npy"), *frames("cam/")], "a", {"cam": "cam/"}),
    "one episode in all": ([*rows(), *frames("cam/")], "ep0", {"cam": "cam/"}),
    "a word before the number": ([*rows(), *frames("ep0/cam/frame_")], "ep0", {"cam": "ep0/cam/frame_"}),
    "no rows": (frames("ep0/cam/"), "ep0", {"cam": "ep0/cam/"}),
    "no rows but a caption": (
        [*frames("ep0/images/cam/"), ("ep0.txt", b"go")],
        "ep0",
        {"images.cam": "ep0/images/cam/"},
    ),
    "as macOS packs": (
        [*rows(), ("ep0/cam/._000000.jpg", b"x"), ("._ep0.action.npy", b"x"), *frames("ep0/cam/")],
        "ep0",
        {"cam": "ep0/cam/"},
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_frames_in_folders_are_found_where_tarfile_finds_them(tmp_path, name):
    pairs, key, cameras = FOUND[name]
    path = write_tar(tmp_path / "a.tar", pairs)
    there, index = places(path), index_tar(path)
    assert list(index.keys) == [key]
    assert index.length.tolist() == [3]
    assert {camera for camera, feature in index.features.items() if feature.kind == "frames"} == set(cameras)
    for camera, start in cameras.items():
        wanted = sorted(
            place for member, place in there.items() if re.fullmatch(re.escape(start) + r"\d{6}\.\w+", member)
        )
        assert list(zip(index.frame_offset[camera].tolist(), index.frame_size[camera].tolist(), strict=True)) == wanted
    if any(member.endswith("action.npy") and "._" not in member for member in there):
        assert index.features["action"].shape == (3,)


def test_frames_in_folders_stream_as_pillow_reads_them(tmp_path):
    pairs = []
    for episode, length in enumerate([4, 12]):  # numbers without zeros before them: 10 comes after 9
        pairs += rows(f"ep{episode}.action.npy", length, episode)
        pairs += frames(f"ep{episode}/top/", range(length), "png", digits=1, episode=episode)
        pairs += frames(f"ep{episode}/hand/", range(length), "webp", episode=episode)
        pairs.append((f"ep{episode}.txt", f"do {episode}\n".encode()))
    path = write_tar(tmp_path / "a.tar", pairs)
    stream = es.EpisodeStream(path, batch_size=1, shuffle=False)
    seen = []
    for batch in stream:
        episode, step = int(batch["episode_index"]), int(batch["step_index"])
        seen.append((episode, step))
        np.testing.assert_array_equal(batch["top"][0, 0].numpy(), picture(episode, step))
        shown = np.asarray(Image.open(io.BytesIO(encoded(picture(episode, step), "webp"))))
        np.testing.assert_array_equal(batch["hand"][0, 0].numpy(), shown)
        np.testing.assert_array_equal(batch["action"][0, 0].numpy(), actions(episode, 12)[step])
        assert batch["task"] == [f"do {episode}"]
    assert seen == [(0, step) for step in range(4)] + [(1, step) for step in range(12)]


def test_frames_that_are_counted_from_one_are_the_steps_in_order(tmp_path):
    pictures = [(f"ep0/cam/frame_{step + 1:04d}.png", encoded(picture(0, step), "png")) for step in range(3)]
    path = write_tar(tmp_path / "a.tar", [*rows(), *pictures])
    for step, batch in enumerate(es.EpisodeStream(path, batch_size=1, shuffle=False)):
        np.testing.assert_array_equal(batch["cam"][0, 0].numpy(), picture(0, step))
        np.testing.assert_array_equal(batch["action"][0, 0].numpy(), actions(0, 3)[step])
    assert step == 2


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([*rows(), *frames("ep0/cam/", [0, 2, 3])], "a.tar, ep0.cam: no frame 1 of 3, wanted all from 0 without gaps"),
        ([*rows(), *frames("ep0/cam/", [1, 3, 4])], "a.tar, ep0.cam: no frame 2 of 3, wanted all from 1 without gaps"),
        ([*rows(), *frames("ep0/cam/", [2, 3, 4])], "a.tar, ep0.cam: no frame 0 of 3"),
        ([*rows(), *frames("ep0/cam/", [1, 2])], "a.tar, ep0: cam has 2 steps, wanted 3"),
        ([*rows(), *frames("ep0/cam/", [0, 1])], "a.tar, ep0: cam has 2 steps, wanted 3"),
        (
            [*rows(), *frames("ep0/cam/"), *frames("ep0/cam/", [2], digits=1)],
            "a.tar, ep0/cam/2.jpg, the same as ep0/cam/000002.jpg: this field twice",
        ),
        (
            [*rows(), *frames("ep0/cam/"), *frames("ep0.cam.", [1])],
            "a.tar, ep0.cam.000001.jpg, the same as ep0/cam/000001.jpg: this field twice",
        ),
        (
            [*rows(), *frames("ep0/cam/", [0, 1]), *frames("ep0/cam/", [2], "png")],
            "a.tar, ep0/cam/000002.png: png among the jpeg frames of cam, wanted one kind of frames a camera",
        ),
        (
            [*rows(), *rows("ep1.action.npy"), *frames("cam/")],
            "a.tar, cam/000000.jpg: a frame in a folder, and nothing says of which episode",
        ),
        (
            [*frames("cats/"), *frames("dogs/")],
            "a.tar, cats/000000.jpg: a frame in a folder, and nothing says of which",
        ),
        ([*rows(), *rows("ep0/cam.npy"), *frames("ep0/cam/")], "a.tar, ep0: cam as an array and as numbered frames"),
        (
            [*frames("ep0/cam/"), *((f"ep0/state/{n:06d}.npy", npy(actions(0, 2)[0])) for n in range(3))],
            "a.tar, ep0.state.000000.npy: float32 (3,), wanted raw frames",
        ),
    ],
)
def test_frames_in_folders_that_make_no_whole_camera_are_refused(tmp_path, pairs, message):
    path = write_tar(tmp_path / "a.tar", pairs)
    with pytest.raises(FormatError, match=re.escape(message)):
        index_tar(path)


@pytest.mark.parametrize(
    ("name", "data", "tasks"),
    [
        ("ep0.txt", b"lift the cube", ("lift the cube",)),
        ("ep0.txt", "\ufeffh\u00f6her\r\n\r\n  lower \r\n".encode(), ("h\u00f6her", "lower")),
        ("ep0.txt", b"\n", ()),
        ("ep0.instruction.txt", b"lift\n", ("lift",)),
        ("EP0.TXT", b"lift", ()),
        ("ep0/task.txt", b"lift\n", ()),
    ],
)
def test_caption_in_a_text_is_the_tasks_one_a_line(tmp_path, caplog, name, data, tasks):
    path = write_tar(tmp_path / "a.tar", [*members(0, 3, key="ep0"), (name, data)])
    assert [episode.tasks for episode in index_tar(path).episodes] == [tasks]
    assert (name in caplog.text) == (tasks == () and data != b"\n")  # what belongs to no episode is told


def test_caption_in_the_folder_of_an_episode_is_its_task(tmp_path):
    pairs = [*rows("ep0/action.npy"), *frames("ep0/cam/"), ("ep0/instruction.txt", b"lift"), ("ep0/notes.txt", b"x")]
    path = write_tar(tmp_path / "a.tar", pairs)
    assert [episode.tasks for episode in index_tar(path).episodes] == [("lift",)]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            [("ep0.txt", b"lift\xff")],
            "a.tar, ep0.txt: byte 4 is 0xff (invalid start byte), wanted instructions in UTF-8",
        ),
        ([("ep0.txt", b"x" * ((1 << 20) + 1))], "a.tar, ep0.txt: 1,048,577 bytes, wanted at most 1,048,576"),
        ([("ep0.txt", b"a"), ("ep0.task.txt", b"a")], "a.tar, ep0.task.txt, the same as ep0.txt: this field twice"),
        (
            [("ep0.txt", b"a"), ("ep0.meta.json", b'{"tasks": ["b"]}')],
            "a.tar, ep0: ep0.txt says ['a'], meta.json ['b'], wanted the same instructions. Leave one out",
        ),
    ],
)
def test_caption_that_cannot_be_is_refused_by_name(tmp_path, pairs, message):
    path = write_tar(tmp_path / "a.tar", [*members(0, 3, key="ep0"), *pairs])
    with pytest.raises(FormatError, match=re.escape(message)):
        index_tar(path)


def test_caption_that_its_meta_json_repeats_is_read_once(tmp_path):
    meta = {"tasks": ["lift"]}
    path = write_tar(tmp_path / "a.tar", [*members(0, 3, key="ep0", meta=meta), ("ep0.txt", b"lift\n")])
    assert [episode.tasks for episode in index_tar(path).episodes] == [("lift",)]


def test_index_for_good_of_folders_and_captions_is_verified_and_streams_from_elsewhere(tmp_path):
    for shard in range(2):
        key = f"ep{shard}"
        pairs = [*rows(f"{key}.action.npy", 4), *frames(f"{key}/top/", range(4), "webp"), (f"{key}.txt", key.encode())]
        write_tar(tmp_path / f"s-{shard}.tar", pairs)
    reindex(tmp_path)
    dataset = es.open_dataset(f"file://{tmp_path}")
    assert not verify(dataset).faults
    assert dataset.tasks == ("ep0", "ep1")
    stream = es.EpisodeStream(f"file://{tmp_path}", batch_size=4, shuffle=False, decode="once")
    assert [batch["task"] for batch in stream] == [["ep0"] * 4, ["ep1"] * 4]
