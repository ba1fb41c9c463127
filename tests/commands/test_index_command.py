"""``epistream index``: what it writes is what packing writes, and what the neighbours' readers read."""

import json
import struct
import subprocess
import sys

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from handmade import actions, members, places, sample, samples, write_dataset, write_steps, write_tar

from epistream.commands import cli
from epistream.errors import DatasetExistsError, FormatError, OptionError, SourceError
from epistream.sharding.check.verify import verify
from epistream.sharding.check.verify_shard import VerifyOptions
from epistream.sharding.dataset import open_dataset
from epistream.sharding.manifest.manifest_file import read_manifest
from epistream.sharding.tar.reindex import ReindexOptions, draft_mapping, reindex


@pytest.fixture
def tars(tmp_path):
    folder = tmp_path / "tars"
    folder.mkdir()
    write_tar(
        folder / "shard-000000.tar", members(0, 5, meta={"episode_index": 0}) + members(1, 3, meta={"episode_index": 1})
    )
    write_tar(folder / "shard-000001.tar", members(2, 4, meta={"episode_index": 2, "split": "val"}))
    return folder


def test_index_writes_a_whole_dataset_with_statistics(tars):
    done = reindex(tars)
    dataset = open_dataset(tars)
    assert done.names == ("shard-000000.index", "shard-000001.index", "dataset.json")
    assert dataset.splits == ("all", "val")
    assert dataset.episode_length.tolist() == [5, 3, 4]
    assert verify(dataset, VerifyOptions(statistics=True)).faults == []
    values = np.concatenate([actions(0, 5), actions(1, 3)]).astype(np.float64)
    assert dataset.statistics["action"]["count"] == 8
    np.testing.assert_allclose(dataset.statistics["action"]["mean"], values.mean(axis=0))
    np.testing.assert_allclose(dataset.statistics["action"]["std"], values.std(axis=0))


@pytest.mark.parametrize("codec", ["png", "raw", "jpeg"])
def test_index_of_packed_tars_gives_back_what_packing_wrote(tmp_path, example_data, codec):
    from epistream.sharding.pack.pack import pack

    out = tmp_path / "ds"
    pack(str(example_data / "robomimic" / "scripted_lift.hdf5"), str(out), codec=codec)
    before = read_manifest(str(out))
    indexes = {path.name: path.read_bytes() for path in out.glob("*.index")}
    for name in ["dataset.json", *indexes, *(path.name for path in out.glob("*.tables"))]:
        (out / name).unlink()
    after = reindex(out).manifest
    assert {path.name: path.read_bytes() for path in out.glob("*.index")} == indexes
    assert after.fingerprint == before.fingerprint
    assert after.statistics == before.statistics
    assert after.splits == before.splits


def test_index_beside_a_manifest_is_refused_unless_told_to_overwrite(tars):
    reindex(tars)
    before = (tars / "dataset.json").read_bytes()
    with pytest.raises(DatasetExistsError, match=r"exists\. Replace it with --overwrite, .*: epistream verify"):
        reindex(tars)
    reindex(tars, ReindexOptions(overwrite=True))
    assert (tars / "dataset.json").read_bytes() == before


def test_index_that_fails_leaves_what_was_there(tars):
    reindex(tars)
    before = {path.name: path.read_bytes() for path in tars.iterdir()}
    write_tar(tars / "shard-000002.tar", [("a.jpg", b"x")])
    with pytest.raises(FormatError, match=r"shard-000002\.tar: 1 members \(a\.jpg\), no episodes"):
        reindex(tars, ReindexOptions(overwrite=True))
    (tars / "shard-000002.tar").unlink()
    assert {path.name: path.read_bytes() for path in tars.iterdir()} == before


def test_index_replaces_a_torn_index_and_its_manifest(tars):
    reindex(tars)
    before = (tars / "shard-000001.index").read_bytes()
    (tars / "shard-000001.index").write_bytes(before[:50])
    reindex(tars, ReindexOptions(overwrite=True))
    assert (tars / "shard-000001.index").read_bytes() == before
    assert verify(open_dataset(tars)).faults == []


def test_index_of_some_tars_by_a_pattern_names_only_these(tars):
    reindex(f"{tars}/shard-{{000001..000001}}.tar")
    assert open_dataset(tars).num_episodes == 1


def test_index_of_a_remote_folder_writes_there(tars):
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in tars.iterdir():
        memory.pipe_file(f"/index/{path.name}", path.read_bytes())
    reindex("memory://index")
    assert open_dataset("memory://index").episode_length.tolist() == [5, 3, 4]
    assert verify(open_dataset("memory://index")).faults == []


def test_index_of_what_has_no_tars_is_refused(tmp_path, tars):
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="0 files, no tars"):
        reindex(tmp_path / "empty")
    with pytest.raises(OptionError, match="2 folders, wanted one"):
        reindex(f"{tmp_path}/{{tars,empty}}/shard-000000.tar")
    with pytest.raises(OptionError, match="wanted some of wids, energon, dali"):
        ReindexOptions(emit=("litdata",))


def test_emitted_wids_json_is_read_by_wids(tars, tmp_path, monkeypatch):
    reindex(tars, ReindexOptions(emit=("wids",)))
    monkeypatch.setenv("WIDS_CACHE", str(tmp_path / "wids"))
    code = """
import sys, json, wids
dataset = wids.ShardListDataset(sys.argv[1], transformations=[], keep=True)
out = []
for number in range(len(dataset)):
    sample = dataset[number]
    out.append([sample["__key__"], sorted(k for k in sample if k.startswith(".")), sample[".action.npy"].read().hex()])
print(json.dumps(out))
"""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(tars / "wids.json")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    samples = json.loads(run.stdout.splitlines()[-1])
    assert [sample[0] for sample in samples] == ["ep-000000000", "ep-000000001", "ep-000000002"]
    assert len(samples[1][1]) == 3 + 2
    for (_, _, data), (episode, length) in zip(samples, [(0, 5), (1, 3), (2, 4)], strict=True):
        assert bytes.fromhex(data).endswith(actions(episode, length).tobytes())


def test_emitted_energon_files_hold_offsets_of_headers(tars):
    import tarfile

    reindex(tars, ReindexOptions(emit=("energon",)))
    data = (tars / "shard-000000.tar.idx").read_bytes()
    offsets = struct.unpack(f"<{len(data) // 8}Q", data)
    with tarfile.open(tars / "shard-000000.tar") as tar:
        infos = tar.getmembers()
        end = tar.offset
    firsts = [info.offset for info in infos if info.name.endswith("meta.json")]
    assert offsets == (*firsts, end)
    meta = tars / ".nv-meta"
    counts = yaml.safe_load((meta / ".info.yaml").read_text())
    assert counts == {"shard_counts": {"shard-000000.tar": 2, "shard-000001.tar": 1}}
    splits = yaml.safe_load((meta / "split.yaml").read_text())
    assert splits == {"exclude": [], "split_parts": {"train": ["shard-000000.tar"], "val": ["shard-000001.tar"]}}
    (meta / "dataset.yaml").write_text("mine: true")
    reindex(tars, ReindexOptions(emit=("energon",)))
    assert (meta / "dataset.yaml").read_text() == "mine: true"


def test_emitted_dali_index_lists_every_member(tars):
    reindex(tars, ReindexOptions(emit=("dali",)))
    lines = (tars / "shard-000000.idx").read_text().splitlines()
    assert lines[0] == "v1.2 2"
    words = lines[2].split(" ")
    found = {words[n + 3]: (words[n], int(words[n + 1]), int(words[n + 2])) for n in range(0, len(words), 4)}
    wanted = {
        name: place for name, place in places(tars / "shard-000000.tar").items() if name.startswith("ep-000000001.")
    }
    assert found == {name: (name.partition(".")[2], *place) for name, place in wanted.items()}


def test_emit_beside_a_manifest_writes_only_the_sidecars(tars):
    reindex(tars)
    stamps = {path.name: path.stat().st_mtime_ns for path in tars.iterdir()}
    done = reindex(tars, ReindexOptions(emit=("wids",)))
    assert done.manifest is None
    assert done.names == ("wids.json",)
    assert {name: (tars / name).stat().st_mtime_ns for name in stamps} == stamps


def test_emit_dali_refuses_names_with_spaces(tmp_path):
    write_tar(tmp_path / "a.tar", members(0, 2, key="my episode"))
    with pytest.raises(FormatError, match="a name with spaces"):
        reindex(tmp_path, ReindexOptions(emit=("dali",)))


def test_index_command_says_what_it_wrote(tars):
    result = CliRunner().invoke(cli, ["index", str(tars), "--emit", "wids", "--emit", "dali"])
    assert result.exit_code == 0
    assert f"{tars}: 2 shards, 3 episodes, 12 steps; wrote 6 files. Fingerprint " in result.output
    result = CliRunner().invoke(cli, ["index", str(tars), "--emit", "wids"])
    assert result.output == f"{tars}: wrote 1 file: wids.json\n"


def test_handmade_dataset_is_what_index_would_write(tmp_path):
    folder = write_dataset(tmp_path / "ds")
    before = read_manifest(str(folder)).fingerprint
    assert reindex(folder, ReindexOptions(overwrite=True)).manifest.fingerprint == before


STEPS = """key: ep{episode}_{step}
task: json.task
features:
  observation.images.top: top.jpg
  action: action.npy
  observation.state: json.state
"""


def run_index(*line):
    return CliRunner().invoke(cli, ["index", *map(str, line)])


@pytest.fixture
def steps(tmp_path):
    folder = tmp_path / "steps"
    folder.mkdir()
    write_steps(folder / "steps-000000.tar", samples((5, 3)))
    write_steps(folder / "steps-000001.tar", [sample(2, step) for step in range(4)])
    return folder


def test_index_prints_a_draft_of_what_steps_mean_and_writes_nothing(steps):
    done = run_index(steps, "--draft")
    assert (done.exit_code, done.output) == (0, STEPS)
    assert sorted(path.suffix for path in steps.iterdir()) == [".tar", ".tar"]


def test_index_of_steps_by_a_file_is_whole_to_inspect_and_verify(steps, tmp_path):
    (tmp_path / "steps.yaml").write_text(STEPS)
    done = run_index(steps, "--steps", tmp_path / "steps.yaml", "--emit", "wids")
    assert done.exit_code == 0, done.output
    assert "2 shards, 3 episodes, 12 steps; wrote 4 files" in done.output
    for command in (
        ["verify", str(steps), "--statistics"],
        ["inspect", str(steps)],
        ["inspect", str(steps), "--episode", "1"],
    ):
        result = CliRunner().invoke(cli, command)
        assert result.exit_code == 0, result.output
    facts = json.loads(CliRunner().invoke(cli, ["inspect", str(steps), "--json"]).output)
    assert (facts["num_episodes"], facts["num_steps"], facts["tasks"][0]) == (
        3,
        12,
        {"task": "task 0", "num_episodes": 2},
    )
    sheet = CliRunner().invoke(cli, ["inspect", str(steps), "--episode", "2", "--image", str(tmp_path / "x.png")])
    assert sheet.exit_code == 0, sheet.output


def test_index_of_steps_by_their_keys_deduces_the_rest(steps):
    assert run_index(steps, "--key", "ep{episode}_{step}").exit_code == 0
    dataset = open_dataset(steps)
    assert sorted(dataset.features) == ["action", "observation.images.top", "observation.state"]
    assert list(dataset.tasks) == ["task 0", "task 1"]
    assert verify(dataset).faults == []


def test_index_of_steps_without_a_mapping_or_with_two_is_refused(steps, tmp_path):
    refused = run_index(steps)
    assert isinstance(refused.exception, FormatError)
    assert str(refused.exception).endswith(STEPS)
    (tmp_path / "steps.yaml").write_text(STEPS)
    refused = run_index(steps, "--steps", tmp_path / "steps.yaml", "--key", "{episode}_{step}")
    assert str(refused.exception) == "--steps and --key: both given, wanted one."


def test_index_of_remote_steps_that_span_tars_writes_there(steps):
    import fsspec

    memory = fsspec.filesystem("memory")
    write_steps(steps / "steps-000002.tar", [sample(2, step) for step in range(4, 6)])
    for path in steps.iterdir():
        memory.pipe_file(f"/steps/{path.name}", path.read_bytes())
    done = reindex("memory://steps", ReindexOptions(steps=draft_mapping("memory://steps")))
    assert done.names[0] == "joined-episodes.tar"
    dataset = open_dataset("memory://steps")
    assert dataset.episode_length.tolist() == [5, 3, 6]
    assert verify(dataset, VerifyOptions(statistics=True)).faults == []


def test_index_with_a_mapping_beside_a_manifest_is_refused_though_sidecars_are_wanted(steps, tmp_path):
    (tmp_path / "steps.yaml").write_text(STEPS)
    mapping = ("--steps", str(tmp_path / "steps.yaml"))
    assert run_index(steps, *mapping).exit_code == 0
    done = run_index(steps, *mapping, "--emit", "wids")
    assert done.exit_code != 0
    assert "--overwrite" in str(done.exception)
    assert run_index(steps, *mapping, "--overwrite").exit_code == 0
