"""Quantiles of several datasets together: from the sketches beside their manifests, and what is said without one."""

import json
import logging
import pickle
import shutil

import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hdf5_files import contents, manifest, robomimic, tables
from robots.lerobot_meta import MadeSet, numbers
from web.faulty_server import serve

import epistream as es
from epistream.commands import cli
from epistream.errors import FormatError, SourceError
from epistream.sharding.format.statistics import merge_sketches, quantiles_of, summarize
from epistream.sharding.format.tables import parse_tables, write_tables
from epistream.sharding.manifest import dataset_statistics, manifest_writing
from epistream.sharding.manifest.dataset_statistics import pack_sketches, sketch_key

STEPS = {"a": 9000, "b": 2500, "c": 300}
RANKS = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
LOGGER = "epistream.sharding.manifest.dataset_statistics"


def rank_error(values, found, rank):
    """How far from `rank` the wanted value stands among all values."""
    low, high = np.mean(values < found, axis=0), np.mean(values <= found, axis=0)
    return np.maximum(np.maximum(low - rank, rank - high), 0)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Datasets of unlike sizes and unlike values, packed and as HDF5; and what h5py reads of each."""
    folder = tmp_path_factory.mktemp("parts")
    values = {}
    for number, (name, steps) in enumerate(STEPS.items()):
        rows = np.random.default_rng(number).normal(10 * number, 1 + 3 * number, (steps, 7))
        with h5py.File(robomimic(folder / f"{name}.hdf5", {"demo_0": steps}, cameras=()), "r+") as file:
            file["data/demo_0/actions"][...] = rows
        values[name] = rows
        es.pack(folder / f"{name}.hdf5", folder / name)
    return folder, values


@pytest.fixture
def kept_for_user(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "epistream" / "indexes"


def sketch_of(folder):
    (path,) = folder.glob("statistics-*.tables")
    return path


@pytest.mark.parametrize("suffixes", [("", "", ""), (".hdf5", "", "")])
def test_joined_quantiles_are_those_of_all_values(parts, kept_for_user, caplog, suffixes):
    folder, values = parts
    dataset = es.open_dataset([folder / f"{name}{suffix}" for name, suffix in zip(STEPS, suffixes, strict=True)])
    everything = np.concatenate(list(values.values()))
    found = dataset.statistics["action"]
    assert found["count"] == len(everything) == sum(STEPS.values())
    for key, rank in (("q01", 0.01), ("q99", 0.99)):
        # Three levels: at most half of 1/2,048 for each, as `statistics` says.
        assert rank_error(everything, found[key], rank).max() <= 3 / 4096
    np.testing.assert_allclose(found["std"], everything.std(0), rtol=1e-9)
    assert dataset.statistics.estimated == ()
    assert not caplog.records


def test_mean_of_quantiles_would_be_far_off(parts):
    folder, values = parts
    found = es.open_dataset([folder / name for name in STEPS]).statistics.moments["action"]
    assert rank_error(np.concatenate(list(values.values())), found["q01"], 0.01).max() > 0.004


@pytest.mark.parametrize("seed", range(3))
def test_merged_sketches_hold_their_error_in_any_grouping(seed):
    random = np.random.default_rng(seed)
    pieces = [random.gamma(2, 1 + i % 5, (int(size), 2)) for i, size in enumerate(random.integers(1, 9000, 24))]
    sketches = [summarize(piece).levels for piece in pieces]
    while len(sketches) > 1:  # any two, whatever they are merged of
        left, right = (sketches.pop(int(random.integers(len(sketches)))) for _ in range(2))
        sketches.append(merge_sketches(left, right))
    (merged,) = sketches
    everything = np.concatenate(pieces)
    assert sum(len(level) << number for number, level in enumerate(merged)) == len(everything)
    for name, found in quantiles_of(merged).items():
        assert rank_error(everything, found, RANKS[name]).max() <= (len(merged) - 1) / 4096


def test_normalize_of_a_list_uses_the_quantiles_of_all_values(parts):
    folder, values = parts
    everything = np.concatenate(list(values.values()))
    stream = es.EpisodeStream(
        [folder / name for name in STEPS], batch_size=8, normalize="quantiles", features=["action"]
    )
    low, high = (stream.normalizer.unnormalize("action", one).numpy() for one in (-torch.ones(7), torch.ones(7)))
    for found, rank in ((low, 0.01), (high, 0.99)):
        assert rank_error(everything, found, rank).max() <= 1e-3
    assert next(iter(pickle.loads(pickle.dumps(stream))))["action"].shape == (8, 1, 7)


def test_statistics_of_a_list_survive_the_way_to_another_process(parts):
    folder, _ = parts
    dataset = es.open_dataset([folder / name for name in "ab"], features=["action"])
    there = pickle.loads(pickle.dumps(dataset)).statistics
    assert dict(there) == dict(dataset.statistics)
    assert there.moments == dataset.statistics.moments


def test_part_without_a_sketch_makes_estimates_that_say_so(parts, tmp_path, caplog):
    folder, _ = parts
    for name in ("a", "b"):
        shutil.copytree(folder / name, tmp_path / name)
    sketch_of(tmp_path / "b").unlink()
    dataset = es.open_dataset([tmp_path / "a", tmp_path / "b"])
    ends = [[es.open_dataset(tmp_path / name).statistics["action"][key][0] for name in "ab"] for key in ("q01", "q99")]
    with caplog.at_level(logging.WARNING, LOGGER):
        found = dataset.statistics["action"]
        assert dataset.statistics["action"] is found
    for key, (one, other) in zip(("q01", "q99"), ends, strict=True):
        assert min(one, other) <= found[key][0] <= max(one, other)
    assert set(dataset.statistics.estimated) == set(dataset.statistics)
    (record,) = caplog.records
    said = record.getMessage()
    assert said.startswith(f"{tmp_path / 'b'}: no sketch of ")
    assert "action" in said
    done = CliRunner().invoke(cli, ["inspect", str(tmp_path / "a"), str(tmp_path / "b")])
    assert "quantiles are estimates" in done.output
    facts = json.loads(
        CliRunner().invoke(cli, ["inspect", *map(str, (tmp_path / "a", tmp_path / "b")), "--json"]).stdout
    )
    assert set(facts["estimated_quantiles"]) == set(facts["statistics"])


def test_moments_of_a_list_need_no_sketch(parts, caplog):
    folder, _ = parts
    with serve() as server:
        server.files = {
            f"/{name}/{path.name}": path.read_bytes() for name in "ab" for path in (folder / name).iterdir()
        }
        dataset = es.open_dataset([f"{server.url}/a", f"{server.url}/b"])
        asked = len(server.requests)
        options = {"batch_size": 8, "features": ["action"], "cache": "off"}
        es.EpisodeStream([f"{server.url}/a", f"{server.url}/b"], normalize="mean_std", **options)
        assert not [path for path, _ in server.requests if "statistics-" in path]
        del server.requests[asked:]
        found = dataset.statistics["action"]
        pickle.loads(pickle.dumps(dataset))
        assert dataset.statistics["action"] is found
        assert sorted(path.split("/")[1] for path, _ in server.requests[asked:] if "statistics-" in path) == ["a", "b"]
        assert len(server.requests) == asked + 2
        (name,) = {path for path in server.files if path.startswith("/b/statistics-")}
        del server.files[name]
        server.plan = lambda path, number: None
        again = es.open_dataset([f"{server.url}/a", f"{server.url}/b"])
        assert again.statistics["action"]["q01"] == again.statistics.moments["action"]["q01"]
        assert again.statistics.estimated


@pytest.mark.parametrize("command", [["index"], ["pack"]])
def test_index_and_packing_again_write_the_same_sketches(parts, tmp_path, command):
    folder, _ = parts
    shutil.copytree(folder / "b", tmp_path / "b")
    path = sketch_of(tmp_path / "b")
    before = path.read_bytes()
    path.write_bytes(b"torn")
    source = [str(folder / "b.hdf5")] if command == ["pack"] else []
    done = CliRunner().invoke(cli, [*command, *source, str(tmp_path / "b"), "--overwrite"])
    assert done.exit_code == 0, done.output
    said = manifest(tmp_path / "b")
    named = {one["file"] for one in (said["tables"], said["sources"], *said["episodes"])}
    assert {path.name for path in (tmp_path / "b").glob("*.tables")} == named | {path.name}
    assert sketch_of(tmp_path / "b").read_bytes() == before


def test_overwriting_that_dies_between_sketch_and_manifest_leaves_the_old_pair(parts, tmp_path, monkeypatch):
    folder, _ = parts
    shutil.copytree(folder / "b", tmp_path / "out")
    old = sketch_of(tmp_path / "out").name
    real = manifest_writing.write_atomic

    def dies(url, data, options=None):
        if url.endswith("dataset.json"):
            raise KeyboardInterrupt
        real(url, data, options)

    monkeypatch.setattr(manifest_writing, "write_atomic", dies)
    monkeypatch.setattr("epistream.sharding.pack.workspace.Workspace.abandon", lambda *_, **__: None)  # as a kill
    with pytest.raises(KeyboardInterrupt):
        es.pack(folder / "c.hdf5", tmp_path / "out", overwrite=True)
    assert len(list((tmp_path / "out").glob("statistics-*"))) == 2
    dataset = es.open_dataset([tmp_path / "out", folder / "a"])
    assert dataset.statistics["action"]["count"] == STEPS["a"] + STEPS["b"]
    assert not dataset.statistics.estimated
    monkeypatch.undo()
    es.pack(folder / "c.hdf5", tmp_path / "out", overwrite=True)
    assert sketch_of(tmp_path / "out").name != old
    assert contents(tmp_path / "out").keys() >= tables(tmp_path / "out")


def changed(data, **changes):
    parsed = parse_tables(data, "epistream.dataset-sketches", "x", "")
    arrays = dict(parsed.arrays) | changes.pop("arrays", {})
    return write_tables(changes.pop("kind", "epistream.dataset-sketches"), parsed.meta | changes, arrays)


HOSTILE = {
    "empty": lambda data: b"",
    "torn": lambda data: data[:-64],
    "flipped": lambda data: data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
    "another kind": lambda data: changed(data, kind="epistream.dataset-sources"),
    "of another": lambda data: changed(data, of="0" * 32),
    "of nothing": lambda data: changed(data, of=None),
    "no sizes": lambda data: changed(data, sizes=None),
    "sizes of others": lambda data: changed(data, sizes={"action": [300]}),
    "negative": lambda data: changed(data, sizes={name: [-1, 301] for name in sizes_of(data)}),
    "too many levels": lambda data: changed(data, sizes={name: [300] + [0] * 64 for name in sizes_of(data)}),
    "another weight": lambda data: changed(data, sizes={name: [299, 1] for name in sizes_of(data)}),
    "another width": lambda data: changed(data, arrays={"action": np.zeros((300, 6))}),
    "integers": lambda data: changed(data, arrays={"action": np.zeros((300, 7), np.int64)}),
    "one axis": lambda data: changed(data, arrays={"action": np.zeros(300)}),
    "no counts": lambda data: changed(data, not_finite=3),
}


def sizes_of(data):
    return parse_tables(data, "epistream.dataset-sketches", "x", "").meta["sizes"]


@pytest.mark.parametrize("how", HOSTILE)
def test_sketches_that_cannot_be_are_refused(parts, tmp_path, how):
    folder, _ = parts
    shutil.copytree(folder / "c", tmp_path / "c")
    path = sketch_of(tmp_path / "c")
    path.write_bytes(HOSTILE[how](path.read_bytes()))
    assert es.open_dataset(tmp_path / "c").statistics["action"]["count"] == 300  # alone it needs none
    with pytest.raises(FormatError, match=rf"{path.name}: .*Remove it, or make it anew"):
        es.open_dataset([tmp_path / "c", folder / "b"]).statistics["action"]


def test_sketches_that_are_too_large_are_not_read(parts, tmp_path, monkeypatch):
    folder, _ = parts
    monkeypatch.setattr(dataset_statistics, "MAX_SKETCH_BYTES", 5000)
    with pytest.raises(FormatError, match="more than 5,000 bytes"):
        es.open_dataset([folder / "c", folder / "b"]).statistics["action"]


def test_features_too_large_for_the_file_are_left_out_widest_first(monkeypatch):
    random = np.random.default_rng(0)
    sketches = {name: summarize(random.normal(size=(100, width))).levels for name, width in {"w": 50, "n": 3}.items()}
    monkeypatch.setattr(dataset_statistics, "MAX_SKETCH_BYTES", 20_000)
    assert list(sizes_of(pack_sketches("k", sketches))) == ["n"]


def test_sketch_is_exact_and_half_as_large_where_values_are_float32():
    values = np.random.default_rng(0).normal(size=(3000, 2)).astype(np.float32)
    small = pack_sketches("k", {"x": summarize(values).levels})
    large = pack_sketches("k", {"x": summarize(values.astype(np.float64) * np.pi).levels})
    assert len(small) < 0.6 * len(large)


def test_sketch_is_named_after_fingerprint_and_statistics(parts):
    folder, _ = parts
    said = manifest(folder / "a")
    key = sketch_key(said["fingerprint"], said["statistics"]["features"])
    assert sketch_of(folder / "a").name == f"statistics-{key[:8]}.tables"
    assert sketch_of(folder / "a").name in tables(folder / "a")
    assert "statistics-" not in (folder / "a" / "dataset.json").read_text()


def test_sketch_that_may_not_be_read_counts_as_missing(parts, monkeypatch):
    folder, _ = parts

    def forbidden(url, size, options=None):
        raise SourceError(f"{url}: PermissionError")

    monkeypatch.setattr(dataset_statistics, "read_start", forbidden)
    assert es.open_dataset([folder / "a", folder / "b"]).statistics.estimated


def test_hdf5_statistics_of_an_earlier_release_get_their_sketch_when_somebody_asks(parts, kept_for_user):
    folder, _ = parts
    es.open_dataset(folder / "c.hdf5")
    (path,) = kept_for_user.glob("*.tables")
    before = path.read_bytes()
    for damage in (None, b"torn"):
        path.unlink()
        if damage:
            path.write_bytes(damage)
        dataset = es.open_dataset([folder / "c.hdf5", folder / "b"])
        assert path.exists() == bool(damage)
        assert dataset.statistics["action"]["count"] == STEPS["b"] + STEPS["c"]
        assert not dataset.statistics.estimated
        assert path.read_bytes() == before


def test_parts_of_lerobot_are_told_to_be_packed(parts, tmp_path, caplog, monkeypatch):
    """They have no index of ours that could be made again."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder, _ = parts
    features = {"action": numbers(7, "float64")}
    for name in ("c", "d e"):
        MadeSet("v3.0", (5, 3), features, fps=20).write(tmp_path / name)
    shutil.copytree(folder / "b", tmp_path / "b")
    sketch_of(tmp_path / "b").unlink()
    dataset = es.open_dataset([tmp_path / "c", tmp_path / "b", tmp_path / "d e"], features=["action"])
    with caplog.at_level(logging.WARNING, LOGGER):
        assert "q01" in dataset.statistics["action"]
    (said,) = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    assert said.startswith(f"{tmp_path}/c, {tmp_path}/b, {tmp_path}/d e: no sketch of action beside the manifest")
    assert said.endswith(
        f"Make it with 'epistream pack {tmp_path}/c OUT' and 'epistream index {tmp_path}/b --overwrite' and "
        f"'epistream pack '{tmp_path}/d e' OUT'."
    )
