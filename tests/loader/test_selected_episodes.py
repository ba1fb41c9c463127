"""Episodes of a selection, wherever they lie: facts of every kind of source, streams, mixtures, packing, exports."""

import json
import logging
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from click.testing import CliRunner
from web.faulty_server import put_folder, serve

import epistream as es
from epistream.commands import cli
from epistream.errors import FormatError, OptionError, StateError
from epistream.sharding.dataset_facts import facts_of
from epistream.sharding.hdf5.index import attributes_in
from epistream.sharding.selecting.selection import parse_selection
from epistream.sharding.selecting.selection_file import ListedEpisode, write_selection

SETS = Path(__file__).parent.parent / "sharding" / "lerobot" / "sets"
LENGTHS = {"monday": [8, 5, 9, 6], "tuesday": [7, 4]}
# By day and demonstration: success, operator (the last of each day has none), seed.
SUCCESS = [True, False, True, True, False, True]
OPERATORS = ["ann", "bob", "ann", None, "bob", None]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two files of demonstrations without cameras; the second and fifth are masked for validation."""
    folder = tmp_path_factory.mktemp("recorded")
    episode = 0
    for day, lengths in LENGTHS.items():
        with h5py.File(folder / f"{day}.hdf5", "w") as file:
            for demo, length in enumerate(lengths):
                group = file.create_group(f"data/demo_{demo}")
                group["actions"] = np.full((length, 2), episode, np.float32)
                group["obs/robot0_joint_pos"] = np.full((length, 3), episode, np.float32)
                group.attrs["success"] = SUCCESS[episode]
                group.attrs["ep_meta"] = json.dumps({"lang": f"lift the {'cup' if demo % 2 else 'cube'}"})
                if OPERATORS[episode]:
                    group.attrs["operator"] = OPERATORS[episode]
                episode += 1
            file["mask/valid"] = np.array([b"demo_1" if day == "monday" else b"demo_0"])
            file["mask/train"] = np.array(
                [f"demo_{n}".encode() for n in range(len(lengths)) if n != (1 if day == "monday" else 0)]
            )
    return folder


@pytest.fixture(scope="module")
def packed(recorded):
    out = recorded.parent / f"{recorded.name}-packed"
    es.pack(recorded, out, shard_size="64KiB")
    return out


def chosen(source, value):
    dataset = es.open_dataset(source)
    return np.flatnonzero(parse_selection(value).rows(facts_of(dataset))).tolist()


SELECTIONS = [
    ("success", [0, 2, 3, 5]),
    ("not success and length < 6", [1]),
    ("operator == 'ann'", [0, 2]),
    ("operator != 'ann'", [1, 4]),
    ("task == '*cup'", [1, 3, 5]),
    ("split == 'val'", [1, 4]),
    ("source == 'tuesday.hdf5'", [4, 5]),
    ("source == 'monday.hdf5' and path == '/data/demo_2'", [2]),
    ("-1, 0:2", [0, 1, 5]),
]


@pytest.mark.parametrize(("text", "wanted"), SELECTIONS)
def test_selection_means_the_same_episodes_in_files_and_in_their_shards(recorded, packed, text, wanted):
    assert chosen(recorded, text) == wanted
    assert chosen(packed, text) == wanted
    assert chosen([str(packed), str(recorded)], text) == (
        [*wanted, *(n + 6 for n in wanted)] if "0:2" not in text else [0, 1, 11]
    )


def test_selection_of_shards_goes_on_where_a_tar_is_of_others(tmp_path, packed):
    folder = tmp_path / "mine"
    shutil.copytree(packed, folder)
    for name in folder.glob("*.tables"):
        name.unlink()
    (folder / "dataset.json").unlink()
    assert chosen(str(folder / "*.tar"), "operator == 'ann' and success") == [0, 2]


def test_selection_of_remote_shards_is_that_of_local_ones(packed):
    with serve() as server:
        url = put_folder(server, packed)
        assert chosen(url, "operator == 'ann' and success") == [0, 2]
        assert chosen(url, "source == 'tuesday.hdf5'") == [4, 5]


def test_torn_index_is_told_when_a_selection_asks_for_it(tmp_path, packed):
    folder = tmp_path / "mine"
    shutil.copytree(packed, folder)
    index = next(folder.glob("*.index"))
    data = bytearray(index.read_bytes())
    data[-1] ^= 1
    index.write_bytes(data)
    assert chosen(folder, "length == 5") == [1]
    with pytest.raises(FormatError, match=f"{index}: checksum"):
        chosen(folder, "key == 'x'")


def test_indexes_of_hdf5_files_of_earlier_releases_have_their_attributes_read(recorded, monkeypatch):
    dataset = es.open_dataset(recorded)
    monkeypatch.setattr("epistream.sharding.hdf5.index.attributes_in", lambda data, where: None)
    rows = parse_selection("operator == 'ann'").rows(facts_of(dataset))
    assert np.flatnonzero(rows).tolist() == [0, 2]
    kept = attributes_in(Path(dataset.index_url[0]).read_bytes(), "index")
    assert [one.get("operator") for one in kept] == ["ann", "ann", None]  # those for training


@pytest.mark.parametrize("version", ["v21", "v30"])
def test_columns_that_somebody_added_to_a_lerobot_set_are_attributes(tmp_path, version):
    source = tmp_path / "set"
    shutil.copytree(SETS / f"numbers_{version}", source)
    num_episodes = es.open_dataset(source).num_episodes
    grades = [number % 3 for number in range(num_episodes)]
    if version == "v21":
        file = source / "meta" / "episodes.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row | {"grade": grades[row["episode_index"]]}) + "\n" for row in rows))
    else:
        parquet = pytest.importorskip("pyarrow.parquet")
        file = next((source / "meta" / "episodes").rglob("*.parquet"))
        table = parquet.read_table(file)
        column = [[grades[number] for number in table["episode_index"].to_pylist()]]
        parquet.write_table(table.append_column("grade", column), file)
    wanted = [number for number in range(num_episodes) if grades[number] == 1]
    assert chosen(source, "grade == 1 and robot_type != 'nothing'") == wanted
    assert chosen(source, f"path == 'episode {wanted[-1]}'") == wanted[-1:]
    es.pack(source, tmp_path / "packed", episodes="grade == 1")
    dataset = es.open_dataset(tmp_path / "packed")
    assert dataset.num_episodes == len(wanted)
    assert chosen(tmp_path / "packed", "grade == 1") == list(range(len(wanted)))


def seen(stream):
    return sorted({number for batch in stream for number in batch["episode_index"].tolist()})


def test_stream_of_a_selection_has_its_windows_and_keeps_numbers(packed):
    everything = es.EpisodeStream(packed, split=None, remainder="uneven")
    stream = es.EpisodeStream(packed, split=None, remainder="uneven", episodes="success and length > 6")
    assert (everything.num_windows, stream.num_windows) == (39, 17)
    assert seen(stream) == [0, 2]
    actions = {float(value) for batch in stream for value in batch["action"].ravel()}
    assert actions == {0.0, 2.0}
    assert seen(es.EpisodeStream(packed, episodes=[1, 2, 3], remainder="uneven")) == [2, 3]
    times = [0, 1, 2, 1, 1, 1]
    assert es.EpisodeStream(packed, split=None, episodes="1:3", repetitions=times).num_windows == 5 + 2 * 9
    validation = es.EpisodeStream(packed, validation=True, episodes=np.arange(6) >= 4, batch_size=4)
    assert (validation.num_windows, seen(validation)) == (7, [4])


def test_stream_of_files_divides_them_before_it_chooses(recorded):
    val = es.EpisodeStream(recorded, split="val", val_fraction=0.5, remainder="uneven")
    train = es.EpisodeStream(recorded, val_fraction=0.5, remainder="uneven", episodes="operator == 'ann'")
    assert set(seen(train)) <= {0, 2} - set(seen(val))


def test_stream_of_a_selection_outside_of_its_split_is_refused_with_their_splits(packed):
    with pytest.raises(OptionError, match=r"split train: none of the selected episodes is of it. They are of val 2"):
        es.EpisodeStream(packed, episodes="split == 'val'")
    with pytest.raises(OptionError, match=r"episodes: 'succes': no episode of .*Did you mean 'success'"):
        es.EpisodeStream(packed, episodes="succes")


def test_state_is_resumed_by_what_a_selection_means_and_by_no_other(packed):
    state = es.EpisodeStream(packed, episodes="operator == 'ann'").state_dict()
    es.EpisodeStream(packed, episodes=[0, 2]).load_state_dict(state)
    for other in ("0, 3", "2:", None):
        with pytest.raises(StateError, match="anchors is"):
            es.EpisodeStream(packed, episodes=other).load_state_dict(state)


def test_mixture_draws_from_the_selection_of_each_of_its_streams(packed, recorded):
    parts = [
        es.EpisodeStream(packed, split=None, episodes="source == 'monday*'"),
        es.EpisodeStream(recorded, split=None, episodes="source == 'tuesday*'"),
    ]
    pairs = set()
    for batch in es.Mixture(parts, [1, 1], batch_size=4, stop="all_exhausted"):
        pairs |= set(zip(batch["dataset_index"].tolist(), batch["episode_index"].tolist(), strict=True))
    assert pairs == {(0, 0), (0, 1), (0, 2), (0, 3), (1, 4), (1, 5)}


def test_selection_file_made_of_recordings_chooses_in_their_shards(tmp_path, recorded, packed, caplog):
    dataset = es.open_dataset(recorded)
    facts = facts_of(dataset)
    columns = {name: facts.column(name) for name in ("source", "path", "key")}
    told = {name: [one.values[number] for number in one.numbers] for name, one in columns.items()}
    bad = [ListedEpisode(n, told["source"][n], told["path"][n], told["key"][n], ("W1",)) for n in (1, 5)]
    path = tmp_path / "bad.json"
    write_selection(path, [*bad, ListedEpisode(9, "/gone.hdf5", "/data/demo_0")], dataset.url)
    assert chosen(recorded, f"@{path}") == [1, 5]
    assert chosen(packed, f"not listed('{path}')") == [0, 2, 3, 4]
    with caplog.at_level(logging.WARNING):
        report = es.pack(recorded, tmp_path / "good", episodes=f"not listed('{path}')")
    assert (report.num_episodes, report.num_steps) == (4, 30)
    assert "not among the episodes of the sources: /gone.hdf5: /data/demo_0" in caplog.text


def test_packing_a_selection_notes_it_and_resumes_with_the_same_one_only(tmp_path, recorded):
    out = tmp_path / "out"
    report = es.pack(recorded, out, episodes="success and task == '*cube'", val_fraction=0.5)
    assert (report.num_episodes, report.num_steps, report.splits) == (2, 17, {"train": 1, "val": 1})
    said = json.loads((out / "dataset.json").read_text())
    assert said["provenance"]["options"]["episodes"] == "success and task == '*cube'"
    assert [source.path for source in _sources(out)] == ["monday.hdf5"]
    again = {"episodes": "success and task == '*cube'", "val_fraction": 0.5, "resume": True}
    assert not es.pack(recorded, out, **again).is_new
    with pytest.raises(es.EpistreamError, match="other sources or options"):
        es.pack(recorded, out, **again | {"episodes": "success"})


def _sources(folder):
    from epistream.sharding.manifest.manifest_file import read_manifest

    return read_manifest(str(folder)).sources


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"episodes": "key == 'ep-000000001'"}, "episodes: key, which packing gives its episodes itself"),
        ({"episodes": "split == 'val'", "val_fraction": 0.5}, "episodes: split, with val_fraction"),
        ({"episodes": "operater == 'ann'"}, "Did you mean 'operator'"),
        ({"episodes": "6"}, "no episode 6 of the sources, wanted 0 to 5"),
        ({"episodes": "length > 100"}, "the sources: episodes 'length > 100': none of 6 episodes"),
    ],
)
def test_selection_that_packing_cannot_use_is_refused_and_leaves_nothing(tmp_path, recorded, options, told):
    with pytest.raises(OptionError, match=told):
        es.pack(recorded, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_export_of_a_selection_has_its_episodes_split_after_split(tmp_path, packed):
    es.export_lerobot(packed, tmp_path / "set", fps=20, workers=1, episodes="operator == 'ann' or split == 'val'")
    dataset = es.open_dataset(tmp_path / "set")
    assert dataset.episode_length.tolist() == [8, 9, 5, 7]
    assert dataset.episode_split.tolist() == [0, 0, 1, 1]
    with pytest.raises(OptionError, match="no episode of those selected in split 'val'"):
        es.export_lerobot(packed, tmp_path / "none", fps=20, split="val", episodes="0")


def test_inspect_lists_the_episodes_of_a_selection(packed):
    run = CliRunner().invoke(cli, ["inspect", str(packed), "--episodes", "not success or operator == 'ann'"])
    lines = [line.split() for line in run.output.splitlines()]
    assert ["1", "monday.hdf5:", "/data/demo_1", "5", "val", "bob", "False", "lift", "the", "cup"] in lines
    assert run.output.endswith("4 of 6 episodes, 29 steps\n")
    run = CliRunner().invoke(cli, ["inspect", str(packed), "--episodes", "-1", "--json"])
    [one] = json.loads(run.output)["episodes"]
    assert one == {
        "index": 5,
        "key": "ep-000000005",
        "source": "tuesday.hdf5",
        "path": "/data/demo_1",
        "length": 4,
        "split": "train",
        "tasks": ["lift the cup"],
    }
    run = CliRunner().invoke(cli, ["inspect", str(packed), "--episodes", "0", "--episode", "1"])
    assert isinstance(run.exception, OptionError) or "wanted one of them" in run.output
