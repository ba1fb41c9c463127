"""Tars with one sample a step stream as episodes: what a stream gives is what tarfile, numpy and Pillow read."""

import io
import json
import logging
import pickle
import tarfile

import numpy as np
import pytest
from handmade import action_row as action
from handmade import encoded, independent, npy, picture, sample, samples, state, write_steps, write_tar
from web.faulty_server import serve

import epistream as es
from epistream.errors import FormatError, SourceError
from epistream.sharding.check.inspect import EpisodeFrames
from epistream.sharding.check.verify import verify
from epistream.sharding.check.verify_shard import VerifyOptions
from epistream.sharding.tar.reindex import ReindexOptions, draft_mapping, reindex
from epistream.sharding.tar.step_mapping import StepMapping

LENGTHS = (5, 3, 9)
FEATURES = {
    "action": "action.npy",
    "observation.state": "json.state",
    "observation.images.top": "top.jpg",
}
MAPPING = {"key": "ep{episode}_{step}", "task": "json.task", "fps": 10, "features": FEATURES}
WINDOW = es.Window(obs=range(-1, 1), action=range(4))


def index(folder, **changes):
    return reindex(folder, ReindexOptions(steps=StepMapping.of(MAPPING | changes, "mapping")))


def check(source, paths, field="top.jpg", window=WINDOW, key=r"ep(\d+)_(\d+)", atol=0, **options):
    """Every window of a stream against the independent reader; the windows that were seen."""
    wanted = independent(paths, key)
    lengths = {episode: 1 + max(s for e, s in wanted if e == episode) for episode, _ in wanted}
    episodes = sorted(lengths)
    stream = es.EpisodeStream(source, batch_size=4, window=window, remainder="uneven", **options)
    seen = []
    for batch in stream:
        tasks = batch["task"]
        for row in range(len(batch["step_index"])):
            episode, step = episodes[int(batch["episode_index"][row])], int(batch["step_index"][row])
            seen.append((episode, step))
            last = lengths[episode] - 1
            rows = [wanted[episode, min(step + ahead, last)]["action.npy"] for ahead in range(4)]
            np.testing.assert_array_equal(batch["action"][row].numpy(), rows)
            past = [wanted[episode, max(step + offset, 0)] for offset in (-1, 0)]
            np.testing.assert_array_equal(
                batch["observation.state"][row].numpy(), np.float32([one["json"]["state"] for one in past])
            )
            frames = batch["observation.images.top"][row].numpy()
            np.testing.assert_allclose(frames.astype(int), [one[field].astype(int) for one in past], atol=atol)
            assert tasks[row] == past[1]["json"]["task"]
    return seen


def windows(lengths=LENGTHS):
    return [(episode, step) for episode, length in enumerate(lengths) for step in range(length)]


@pytest.mark.parametrize(
    ("codec", "field", "atol"),
    [("jpeg", "top.jpg", 2), ("png", "top.png", 0), ("webp", "top.webp", 0), ("raw", "top.npy", 0)],
)
def test_steps_stream_as_episodes_equal_to_an_independent_reader(tmp_path, codec, field, atol):
    path = write_steps(tmp_path / "steps-000000.tar", samples(LENGTHS, codec=codec))
    done = index(tmp_path, features=FEATURES | {"observation.images.top": field})
    assert done.names == ("steps-000000.index", "dataset.json")
    assert sorted(check(tmp_path, [path], field, atol=atol)) == windows()
    assert sorted(check(path, [path], field, atol=atol)) == windows()
    assert verify(es.open_dataset(tmp_path), VerifyOptions(statistics=True)).faults == []


def test_steps_have_statistics_tasks_and_frames_per_second(tmp_path):
    write_steps(tmp_path / "steps.tar", samples(LENGTHS))
    index(tmp_path)
    dataset = es.open_dataset(tmp_path)
    values = np.array([action(e, s) for e, s in windows()], np.float64)
    np.testing.assert_allclose(dataset.statistics["action"]["mean"], values.mean(axis=0))
    states = np.array([state(e, s) for e, s in windows()])
    np.testing.assert_allclose(dataset.statistics["observation.state"]["max"], states.max(axis=0))
    assert dataset.statistics["observation.state"]["count"] == sum(LENGTHS)
    assert list(dataset.tasks) == ["task 0", "task 1"]
    assert {feature.fps for feature in dataset.features.values()} == {10}
    frames = EpisodeFrames(dataset, 2)
    found = frames.read(dataset.features["observation.images.top"], 7)
    np.testing.assert_allclose(found.astype(int), picture(2, 7).astype(int), atol=40)


def test_steps_out_of_order_and_interleaved_are_put_in_order(tmp_path):
    chosen = samples(LENGTHS)
    np.random.default_rng(0).shuffle(chosen)
    path = write_steps(tmp_path / "steps.tar", chosen)
    index(tmp_path)
    assert sorted(check(tmp_path, [path], atol=2)) == windows()


def test_steps_whose_members_do_not_follow_each_other_are_joined(tmp_path):
    members = [member for members in samples(LENGTHS) for member in members]
    path = write_tar(tmp_path / "steps.tar", sorted(members, key=lambda member: member[0].rpartition(".")[2]))
    index(tmp_path)
    assert sorted(check(tmp_path, [path], atol=2)) == windows()


def test_steps_in_folders(tmp_path):
    path = write_steps(tmp_path / "steps.tar", samples(LENGTHS, key="lab/traj_{episode}/{step:06d}"))
    index(tmp_path, key="lab/traj_{episode}/{step}")
    assert sorted(check(tmp_path, [path], key=r"lab/traj_(\d+)/(\d+)", atol=2)) == windows()


def test_steps_named_by_fields_of_json(tmp_path):
    mixed = [sample(e, s, key=f"{number:08x}-{e}x{s}") for number, (e, s) in enumerate(windows())]
    path = write_steps(tmp_path / "steps.tar", mixed)
    index(tmp_path, key="", episode="json.episode_index", step="json.frame_index")
    assert sorted(check(tmp_path, [path], key=r"[0-9a-f]{8}-(\d+)x(\d+)", atol=2)) == windows()


def test_steps_of_tars_of_one_episode_each(tmp_path):
    paths = []
    for episode, length in enumerate(LENGTHS):
        named = f"e{episode}_" + "{step:06d}"
        chosen = [sample(episode, step, key=named) for step in range(length)]
        paths.append(write_steps(tmp_path / f"{episode}.tar", chosen))
    index(tmp_path, key="*_{step}", episode="tar")
    assert sorted(check(tmp_path, paths, key=r"e(\d+)_(\d+)", atol=2)) == windows()


def test_steps_counted_from_one(tmp_path):
    write_steps(tmp_path / "steps.tar", [sample(0, step) for step in (1, 2, 3)])
    index(tmp_path)
    stream = es.EpisodeStream(tmp_path, batch_size=3, features=["action"], shuffle=False)
    np.testing.assert_array_equal(next(iter(stream))["action"][:, 0], [action(0, step) for step in (1, 2, 3)])


def test_steps_are_ordered_by_their_numbers_over_all_tars(tmp_path):
    write_steps(tmp_path / "a.tar", [*samples((0, 0, 4)), *[sample(10, s) for s in range(2)]])
    write_steps(tmp_path / "b.tar", [sample(3, s) for s in range(5)])
    index(tmp_path)
    assert es.open_dataset(tmp_path).episode_length.tolist() == [4, 5, 2]


def test_two_ranks_see_each_step_once(tmp_path):
    paths = [
        write_steps(tmp_path / "a.tar", samples(LENGTHS)),
        write_steps(tmp_path / "b.tar", [sample(3, s) for s in range(7)]),
    ]
    index(tmp_path)
    seen = [w for rank in range(2) for w in check(tmp_path, paths, atol=2, world=es.World.of(rank, 2, local_size=2))]
    assert sorted(seen) == windows((*LENGTHS, 7))


def test_steps_through_a_loader_with_workers_and_a_kept_cache(tmp_path):
    write_steps(tmp_path / "steps.tar", samples(LENGTHS))
    index(tmp_path)
    stream = es.EpisodeStream(tmp_path, batch_size=4, remainder="uneven", cache="shm", decode="once")
    seen = []
    with es.StreamingLoader(stream, num_workers=2) as loader:
        for batch in loader:
            for episode, step, row in zip(
                batch["episode_index"].tolist(), batch["step_index"].tolist(), batch["action"], strict=True
            ):
                seen.append((episode, step))
                np.testing.assert_array_equal(row[0].numpy(), action(episode, step))
    assert sorted(seen) == windows()


@pytest.mark.parametrize("features", [None, ["action"], ["observation.images.top"]])
def test_steps_over_http(tmp_path, features):
    write_steps(tmp_path / "steps.tar", samples(LENGTHS))
    index(tmp_path)
    with serve() as server:
        server.files |= {f"/d/{path.name}": path.read_bytes() for path in tmp_path.iterdir()}
        stream = es.EpisodeStream(f"{server.url}/d", batch_size=4, features=features, remainder="uneven")
        seen = []
        for batch in stream:
            where = list(zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True))
            seen += where
            if "action" in batch:
                np.testing.assert_array_equal(batch["action"][:, 0].numpy(), [action(*one) for one in where])
    assert sorted(seen) == windows()


def test_steps_written_by_webdataset_and_what_is_never_unpickled(tmp_path, caplog):
    wds = pytest.importorskip("webdataset")

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "bomb"), "w"))

    with wds.ShardWriter(str(tmp_path / "steps-%06d.tar"), maxcount=1000, verbose=0) as writer:
        for episode, step in windows():
            writer.write(
                {
                    "__key__": f"ep{episode:06d}_{step:06d}",
                    "top.jpg": picture(episode, step),
                    "action.npy": action(episode, step),
                    "json": {"state": state(episode, step), "task": f"task {episode % 2}"},
                    "cls": 3,
                    "extra.pickle": pickle.dumps(Bomb()),
                    "pyd": pickle.dumps(Bomb()),
                    "pth": b"not read",
                }
            )
    with caplog.at_level(logging.WARNING, "epistream"):
        index(tmp_path)
    assert "left out: cls, extra.pickle, pth, pyd" in caplog.text
    assert not (tmp_path / "bomb").exists()
    stream = es.EpisodeStream(tmp_path, batch_size=17, features=["action"], shuffle=False)
    batch = next(iter(stream))
    where = list(zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True))
    np.testing.assert_array_equal(batch["action"][:, 0].numpy(), [action(*one) for one in where])
    assert sorted(where) == windows()


# Episodes that go over from one tar into the next.


def test_episodes_that_span_tars_are_joined(tmp_path, caplog):
    chosen = samples(LENGTHS)
    paths = [write_steps(tmp_path / f"s-{at}.tar", chosen[at : at + 4]) for at in range(0, len(chosen), 4)]
    with caplog.at_level(logging.WARNING, "epistream"):
        done = index(tmp_path)
    assert "2 episodes go over from one tar into the next" in caplog.text
    assert "joined-episodes.tar" in done.names
    assert sorted(check(tmp_path, paths, atol=2)) == windows()
    dataset = es.open_dataset(tmp_path)
    assert dataset.episode_length.tolist() == list(LENGTHS)
    assert dataset.statistics["action"]["count"] == sum(LENGTHS)
    assert verify(dataset, VerifyOptions(statistics=True)).faults == []


@pytest.mark.parametrize("codec", ["webp", "raw", "png"])
def test_some_episodes_that_span_tars_leave_the_others_where_they_are(tmp_path, codec):
    field = {"raw": "top.npy"}.get(codec, f"top.{codec}")
    chosen = samples((4, 6, 5, 4), codec=codec)
    paths = [write_steps(tmp_path / "a.tar", chosen[:7]), write_steps(tmp_path / "b.tar", chosen[7:])]
    features = FEATURES | {"observation.images.top": field}
    index(tmp_path, features=features)
    dataset = es.open_dataset(tmp_path)
    assert [url.rpartition("/")[2] for url in dataset.shard_url] == ["a.tar", "b.tar", "joined-episodes.tar"]
    assert dataset.episode_shard.tolist() == [0, 2, 1, 1]
    assert sorted(check(tmp_path, paths, field)) == windows((4, 6, 5, 4))
    assert verify(dataset).faults == []
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    reindex(tmp_path, ReindexOptions(overwrite=True, steps=StepMapping.of(MAPPING | {"features": features}, "m")))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_an_episode_with_a_gap_between_tars_is_refused(tmp_path):
    write_steps(tmp_path / "a.tar", [sample(0, s) for s in range(3)])
    write_steps(tmp_path / "b.tar", [sample(0, s) for s in range(4, 6)])
    with pytest.raises(
        FormatError, match=r"b\.tar, ep000_00004: step 4 of episode 000 follows a\.tar, ep000_00002, step 2, wanted"
    ):
        index(tmp_path)


def test_tars_that_count_their_episodes_anew_are_refused(tmp_path):
    for name in "ab":
        write_steps(tmp_path / f"{name}.tar", samples((3, 4)))
    with pytest.raises(FormatError, match=r"b\.tar, ep000_00000: step 0 of episode 000, of which .* each step once"):
        index(tmp_path)
    assert not (tmp_path / "dataset.json").exists()


# What is wrong is refused by name.


def without(members, field):
    return [member for member in members if not member[0].endswith(f".{field}")]


def replaced(members, field, data):
    return [(name, data if name.endswith(f".{field}") else old) for name, old in members]


def with_json(members, **values):
    old = json.loads(next(data for name, data in members if name.endswith(".json")))
    return replaced(members, "json", json.dumps(old | values).encode())


BAD = {
    "gap": (lambda c: c[:2] + c[3:], r"ep000_00003: step 3 of episode 000 follows ep000_00001, step 1, wanted step 2"),
    "twice": (
        lambda c: [*c, sample(0, 2, key="ep{episode:03d}_{step}")],
        r"samples ep000_00002 and ep000_2 are both step 2 of episode 000",
    ),
    "late": (
        lambda c: [sample(0, s) for s in (4, 5)],
        r"ep000_00004: the first sample of episode 000 is step 4, wanted 0 or 1",
    ),
    "no first": (lambda c: c[:5] + c[6:], r"ep001_00001: episode 001 begins with step 1, episode 000 with 0"),
    "member": (
        lambda c: [without(c[0], "action.npy"), *c[1:]],
        r"ep000_00000: members json, top\.jpg, wanted action\.npy",
    ),
    "key": (
        lambda c: [*c, [("readme.json", b"{}")]],
        r"readme: a key that does not fit the mapping, wanted 'ep\{episode\}",
    ),
    "shape": (
        lambda c: [*c[:-1], replaced(c[-1], "action.npy", npy(np.zeros(7, np.float32)))],
        r"ep002_00008: action is float32 \(7,\), wanted float32 \(14,\) as in .*ep000_00000",
    ),
    "dtype": (
        lambda c: [*c[:-1], replaced(c[-1], "action.npy", npy(np.zeros(14)))],
        r"ep002_00008: action is float64 \(14,\), wanted float32",
    ),
    "objects": (
        lambda c: [*c[:-1], replaced(c[-1], "action.npy", npy_of_objects())],
        r"ep002_00008\.action\.npy: dtype '\|O', wanted little-endian numbers",
    ),
    "picture": (
        lambda c: [*c[:-1], replaced(c[-1], "top.jpg", encoded(picture(0, 0)[:8], "jpeg"))],
        r"ep002_00008\.top\.jpg: uint8 \(8, 32, 3\), wanted uint8 \(24, 32, 3\) as in",
    ),
    "no picture": (
        lambda c: [*c[:-1], replaced(c[-1], "top.jpg", b"")],
        r"ep002_00008\.top\.jpg: 0 bytes, wanted a picture",
    ),
    "ragged": (
        lambda c: [*c[:-1], with_json(c[-1], state=[[1], [1, 2]])],
        r"ep002_00008\.json, state: \[\[1\], \[1, 2\]\], wanted",
    ),
    "text": (lambda c: [*c[:-1], with_json(c[-1], state="far")], r"ep002_00008\.json, state: 'far', wanted a number"),
    "null": (lambda c: [*c[:-1], with_json(c[-1], state=None)], r"ep002_00008\.json, state: None, wanted a number"),
    "path": (
        lambda c: [*c[:-1], replaced(c[-1], "json", b"{}")],
        r"ep002_00008\.json, state: not there, wanted numbers",
    ),
    "json": (lambda c: [*c[:-1], replaced(c[-1], "json", b"{")], r"ep002_00008\.json: no readable JSON"),
    "task": (
        lambda c: [*c[:-1], with_json(c[-1], task="other")],
        r"episode 002 has task 'task 0' at ep002_00000 and 'other' at ep002_00008",
    ),
    "again": (lambda c: [*c, [c[0][1]]], r"ep000_00000\.action\.npy: this field twice in one sample"),
}


ENDLESS = {
    "step in the key": ("ep0_" + "1" * 5000, {}, "a key that does not fit the mapping"),
    "step in a field": ("ep0_0", {"step": "json.frame_index", "key": "ep{episode}_*"}, "step '1111.*, wanted a whole"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_step_of_more_digits_than_are_read_is_refused_by_name(tmp_path, name):
    key, mapping, words = ENDLESS[name]
    one = with_json(
        [(f"{key}.{member.partition('.')[2]}", data) for member, data in sample(0, 0)], frame_index="1" * 5000
    )
    write_tar(tmp_path / "steps.tar", one, tarfile.PAX_FORMAT)
    with pytest.raises(FormatError, match=words):
        index(tmp_path, **mapping)


def test_episode_named_by_more_digits_than_are_read_keeps_its_name_and_streams(tmp_path):
    steps = [sample(0, step, key=f"ep{'1' * 5000}_{step}") for step in range(3)]
    write_tar(tmp_path / "steps.tar", [member for members in steps for member in members], tarfile.PAX_FORMAT)
    index(tmp_path)
    assert [list(batch["step_index"]) for batch in es.EpisodeStream(tmp_path, batch_size=3, shuffle=False)] == [
        [0, 1, 2]
    ]


def npy_of_objects():
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("name", BAD)
def test_steps_that_do_not_fit_are_refused_by_name_and_nothing_is_written(tmp_path, name):
    spoil, words = BAD[name]
    write_steps(tmp_path / "steps.tar", spoil(samples(LENGTHS)))
    with pytest.raises(FormatError, match=words):
        index(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["steps.tar"]


def test_gaps_that_are_meant_give_the_order(tmp_path):
    times = [30, 7, 100, 55]
    write_steps(tmp_path / "steps.tar", [sample(0, time) for time in times])
    index(tmp_path, gaps=True)
    stream = es.EpisodeStream(tmp_path, batch_size=4, features=["action"], shuffle=False)
    np.testing.assert_array_equal(next(iter(stream))["action"][:, 0], [action(0, time) for time in sorted(times)])


def test_whole_numbers_in_json_of_one_tar_go_with_others_of_another(tmp_path):
    write_steps(tmp_path / "a.tar", [with_json(sample(0, s), state=[s, 0, 1]) for s in range(3)])
    write_steps(tmp_path / "b.tar", [with_json(sample(1, s), state=[s, 0.5, 1]) for s in range(3)])
    index(tmp_path)
    dataset = es.open_dataset(tmp_path)
    assert dataset.features["observation.state"].dtype == "float64"
    assert verify(dataset, VerifyOptions(statistics=True)).faults == []
    stream = es.EpisodeStream(tmp_path, batch_size=6, features=["observation.state"], shuffle=False)
    wanted = [[s, half, 1] for half in (0, 0.5) for s in range(3)]
    np.testing.assert_array_equal(next(iter(stream))["observation.state"][:, 0], wanted)


def test_grey_jpegs_among_coloured_ones_are_coloured(tmp_path):
    grey = encoded(picture(0, 1)[:, :, 0], "jpeg")
    write_steps(tmp_path / "steps.tar", [replaced(sample(0, 0), "top.jpg", grey), sample(0, 1)])
    index(tmp_path)
    assert es.open_dataset(tmp_path).features["observation.images.top"].shape == (24, 32, 3)
    assert verify(es.open_dataset(tmp_path)).faults == []


def test_json_names_with_dots_lists_and_scalars(tmp_path):
    described = {"observation.state": [1.5, 2], "robot": {"arms": [{"grip": 3}]}, "done": False}
    write_tar(
        tmp_path / "s.tar", [(f"e0_{s}.info.json", json.dumps(described | {"done": s == 1}).encode()) for s in range(2)]
    )
    features = {
        "observation.state": "info.json.observation.state",
        "grip": "info.json.robot.arms.0.grip",
        "done": "info.json.done",
    }
    reindex(tmp_path, ReindexOptions(steps=StepMapping.of({"key": "e{episode}_{step}", "features": features}, "m")))
    dataset = es.open_dataset(tmp_path)
    assert {n: (f.dtype, f.shape) for n, f in dataset.features.items()} == {
        "observation.state": ("float64", (2,)),
        "grip": ("int64", ()),
        "done": ("bool", ()),
    }
    batch = next(iter(es.EpisodeStream(tmp_path, batch_size=2, shuffle=False)))
    assert batch["done"].reshape(-1).tolist() == [False, True]
    assert batch["grip"].reshape(-1).tolist() == [3, 3]


def test_verify_sees_a_value_and_a_frame_that_are_not_those_of_the_tar(tmp_path):
    from dataclasses import replace

    from epistream.sharding.format.index import ShardIndex

    write_steps(tmp_path / "steps.tar", samples(LENGTHS))
    index(tmp_path)
    path = tmp_path / "steps.index"
    good = ShardIndex.parse(path.read_bytes(), "x")
    values = {name: rows.copy() for name, rows in good.values.items()}
    values["action"][6, 0] ^= 1
    offsets = {name: rows.copy() for name, rows in good.frame_offset.items()}
    offsets["observation.images.top"][2] += 1
    path.write_bytes(replace(good, values=values, frame_offset=offsets).to_bytes())
    faults = [str(fault) for fault in verify(es.open_dataset(tmp_path), VerifyOptions(sample=0)).faults]
    assert any(
        "episode 001, step 1, action: another value in the index, wanted that of the tar" in fault for fault in faults
    )
    assert any("episode 000, step 2, observation.images.top" in fault for fault in faults)


# Without a mapping.


def refusal(path):
    with pytest.raises(FormatError) as caught:
        es.EpisodeStream(path, batch_size=4)
    return str(caught.value)


def test_a_tar_of_steps_is_refused_with_a_draft(tmp_path):
    path = write_steps(tmp_path / "steps.tar", samples(LENGTHS))
    text = refusal(path)
    assert text.startswith(
        "steps.tar: 17 samples of one step each (ep000_00000, ep000_00001, ...), wanted one sample an"
    )
    assert text.endswith(
        "key: ep{episode}_{step}\ntask: json.task\nfeatures:\n  observation.images.top: top.jpg\n  action: action.npy\n"
        "  observation.state: json.state\n"
    )
    with pytest.raises(FormatError, match="17 samples of one step each"):
        reindex(tmp_path)
    with pytest.raises(
        SourceError, match=r"steps\.tar: a tar, wanted HDF5 files\. A stream says of it: .* one step each"
    ):
        es.pack(path, tmp_path / "out")


def test_the_draft_is_a_mapping_that_works(tmp_path):
    path = write_steps(tmp_path / "steps.tar", samples(LENGTHS))
    reindex(tmp_path, ReindexOptions(steps=draft_mapping(tmp_path)))
    assert sorted(check(tmp_path, [path], atol=2)) == windows()


def test_rows_of_numbers_alone_are_never_taken_for_episodes(tmp_path):
    rows = [
        [(f"ep{e:03d}_{s:05d}.{n}.npy", npy(action(e, s))) for n in ("action", "state")]
        for e in (0, 1)
        for s in range(24)
    ]
    assert "ep{episode}_{step}" in refusal(write_steps(tmp_path / "steps.tar", rows))


@pytest.mark.parametrize(
    ("key", "draft"),
    [
        ("traj_{episode}/{step:05d}", "key: traj_{episode}/{step}\n"),
        ("task7_ep{episode}_{step}", "key: task{episode}_{step}\n"),
        ("{step:06d}", "episode: json.episode_index\n"),
    ],
)
def test_drafts_of_other_keys(tmp_path, key, draft):
    chosen = samples((4,), key=key)
    assert draft in refusal(write_steps(tmp_path / "steps.tar", chosen))


FRAME, ROW = encoded(picture(0, 0), "jpeg"), npy(np.zeros(7, np.float32))


@pytest.mark.parametrize(
    ("fields", "draft"),
    [
        ({"jpg": FRAME, "action.npy": ROW}, "  observation.images.image: jpg\n  action: action.npy\n"),
        ({"image.npy": npy(picture(0, 0)), "action.npy": ROW}, "  observation.images.image: image.npy\n"),
        ({"json": json.dumps({"action": [1, 2]}).encode()}, "  action: json.action\n"),
        ({"action.npy": npy(np.zeros((1, 7)))}, "  action: action.npy\n"),
        ({"jpg": FRAME, "action.npy": npy(np.zeros((16, 7)))}, "  action: action.npy\n"),
        ({"cam.0.jpg": FRAME, "cam.1.jpg": FRAME, "action.npy": ROW}, "  observation.images.1: cam.1.jpg\n"),
        ({"reward.npy": npy(np.float32(1))}, "  reward: reward.npy\n"),
        ({"Top.JPG": FRAME, "Action.NPY": ROW}, "  observation.images.top: top.jpg\n"),
        ({"npy": ROW, "jpg": FRAME}, "  npy: npy\n  observation.images.image: jpg\n"),
        ({"npy": ROW}, "  npy: npy\n"),
        ({"npy": ROW, "json": json.dumps({"instruction": ["lift", "raise"]}).encode()}, "task: json.instruction\n"),
        ({"action.txt": b"0.5 1", "jpg": FRAME, "reward.npy": ROW, "txt": b"lift"}, "task: txt\n"),
        ({"action.npy": npy(np.zeros(4)), "pose.npy": npy(np.eye(4))}, "  action: action.npy\n  pose: pose.npy\n"),
        ({"action.npy": ROW, "depth.npy": npy(np.zeros((8, 10)))}, "  action: action.npy\n  depth: depth.npy\n"),
    ],
)
@pytest.mark.parametrize("key", ["ep{episode}_{step}", "pick{episode}/frame_{step}", "ep{episode}_{step}_*"])
def test_every_kind_of_sample_is_refused_with_a_draft_that_works(tmp_path, key, fields, draft):
    places = [(e, s) for e in range(3) for s in range(50)]
    np.random.default_rng(1).shuffle(places)
    pairs = [
        (f"{key.format(episode=e, step=s).replace('*', str(1_700_000_000 + 33 * s))}.{field}", data)
        for e, s in places
        for field, data in fields.items()
    ]
    text = refusal(write_tar(tmp_path / "steps.tar", pairs))
    assert f"key: {key}\n" in text
    assert draft in text
    reindex(tmp_path, ReindexOptions(steps=draft_mapping(tmp_path)))
    assert es.open_dataset(tmp_path).episode_length.tolist() == [50, 50, 50]


def test_frames_in_folders_of_episodes_are_no_steps(tmp_path):
    pairs = [(f"ep{e}/top/{s:06d}.jpg", FRAME) for e in range(2) for s in range(5)]
    pairs += [(f"ep{e}/instruction.txt", b"go") for e in range(2)]
    assert es.EpisodeStream(write_tar(tmp_path / "frames.tar", pairs), batch_size=1).num_windows == 10


def test_whole_episodes_with_two_numbers_in_their_keys_are_no_steps(tmp_path):
    pairs = [
        (f"task{t}_ep{e}.{n}.npy", npy(np.zeros((12, 14), np.float32)))
        for t in (0, 1)
        for e in range(3)
        for n in ("action", "state")
    ]
    path = write_tar(tmp_path / "shard.tar", pairs)
    assert es.EpisodeStream(path, batch_size=4).num_windows == 6 * 12


def test_captioned_pictures_are_no_steps(tmp_path):
    pairs = [
        (f"{n:09d}.{field}", data)
        for n in range(4)
        for field, data in (("jpg", b"x"), ("txt", b"a cat"), ("json", b'{"width": 3}'))
    ]
    with pytest.raises(FormatError) as caught:
        es.EpisodeStream(write_tar(tmp_path / "pictures.tar", pairs), batch_size=4)
    assert "one step each" not in str(caught.value)


def test_tar_is_not_changed_by_indexing(tmp_path):
    path = write_steps(tmp_path / "steps.tar", samples(LENGTHS))
    before = path.read_bytes()
    index(tmp_path)
    assert path.read_bytes() == before
    with tarfile.open(path) as tar:
        assert len(tar.getmembers()) == 3 * sum(LENGTHS)


def test_an_index_of_steps_that_is_damaged_is_refused(tmp_path):
    from epistream.sharding.format.index import KIND, ShardIndex
    from epistream.sharding.format.tables import parse_tables, write_tables

    write_steps(tmp_path / "steps.tar", samples(LENGTHS))
    index(tmp_path)
    data = (tmp_path / "steps.index").read_bytes()
    for at in range(0, len(data), 97):
        with pytest.raises(FormatError):
            ShardIndex.parse(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :], "x")
    tables = parse_tables(data, KIND, "x", "")
    short = tables.arrays | {"values:action": tables.arrays["values:action"][:-1]}
    wide = tables.arrays | {"values:action": tables.arrays["values:action"][:, :-1]}
    lacking = {name: table for name, table in tables.arrays.items() if name != "values:action"}
    both = lacking | {"offset:action": np.zeros(len(LENGTHS), "<u8")}
    for arrays, meta in [(short, {}), (wide, {}), (lacking, {}), (both, {}), (tables.arrays, {"steps": [1]})]:
        with pytest.raises(FormatError):
            ShardIndex.parse(write_tables(KIND, tables.meta | meta, arrays), "x")


def test_a_mapping_in_an_index_that_is_none_is_a_fault(tmp_path):
    from dataclasses import replace

    from epistream.sharding.format.index import ShardIndex

    write_steps(tmp_path / "steps.tar", samples(LENGTHS))
    index(tmp_path)
    path = tmp_path / "steps.index"
    good = ShardIndex.parse(path.read_bytes(), "x")
    path.write_bytes(replace(good, steps={"mapping": {"key": 3}}).to_bytes())
    faults = [str(fault) for fault in verify(es.open_dataset(tmp_path)).faults]
    assert any("key: Input should be a valid string" in fault for fault in faults)


def test_steps_through_a_stock_data_loader(tmp_path):
    from torch.utils.data import DataLoader

    write_steps(tmp_path / "steps.tar", samples(LENGTHS))
    index(tmp_path)
    stream = es.EpisodeStream(tmp_path, batch_size=4, remainder="uneven")
    seen = []
    for batch in DataLoader(stream, batch_size=None, num_workers=2):
        where = list(zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True))
        np.testing.assert_array_equal(batch["action"][:, 0].numpy(), [action(*one) for one in where])
        seen += where
    assert sorted(seen) == windows()
