"""The benchmark programs still run and count right; none of them is measured here."""

import http.client
import json
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import epistream as es

ROOT = Path(__file__).resolve().parent.parent
RECORDINGS = ROOT / "examples" / "data" / "aloha"


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch):
    """Their folder can be imported from, and nothing of it stays loaded."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in (
            "peers",
            "remote",
            "served",
            "flatness",
            "before_after",
            "one_side",
            "growth",
            "growth_cases",
        ):
            del sys.modules[name]


@pytest.fixture
def small():
    """140 windows of the shipped recordings, at 32x32."""
    from peers.data import Scenario

    return Scenario("small", (32, 32), "jpeg", 140, num_history=2, chunk=16, numbered=True)


def test_windows_of_a_scenario_are_those_that_epistream_reads(small, tmp_path):
    from peers.writers import prepare, windows

    folder = prepare("epistream", small, RECORDINGS, tmp_path)
    window = es.Window(obs=range(-1, 1), action=range(16))
    stream = es.EpisodeStream(folder / "epistream", batch_size=1, window=window, shuffle=False)
    with es.StreamingLoader(stream, num_workers=0) as loader:
        read = [(b["observation.state"][0].numpy().copy(), b["action"][0].numpy().copy()) for b in loader]
    stored = [(sample["state"], sample["action"]) for sample in windows(small, RECORDINGS)]
    assert len(read) == len(stored) == 140
    for (state, action), (other_state, other_action) in zip(read, stored, strict=True):
        np.testing.assert_array_equal(state, other_state)
        np.testing.assert_array_equal(action, other_action)


@pytest.mark.parametrize("name", ["epistream, processes", "epistream, threads", "h5py, the ACT way"])
def test_contenders_without_other_packages_make_batches_of_the_scenario(name, small, tmp_path):
    from peers.contenders import contender_of
    from peers.writers import prepare

    contender = contender_of(name)
    contender.load()
    batches = contender.start(small, prepare(contender.form, small, RECORDINGS, tmp_path))
    batch = next(batches)
    batches.close()
    assert batch["action"].shape == (32, 16, 14)
    assert sorted(tuple(v.shape) for v in batch.values() if getattr(v, "ndim", 0) == 5) == [(32, 2, 32, 32, 3)] * 2


def test_server_answers_ranges_and_counts_the_bytes_of_contents(tmp_path):
    from remote.server import Network, S3Handler, Server

    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "shard").write_bytes(bytes(range(100)))

    def handler(*arguments):
        return S3Handler(*arguments, directory=str(tmp_path))

    with Server(("127.0.0.1", 0), handler) as server:
        server.network = Network(1e9, 0.0)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request("GET", "/bucket/shard", headers={"Range": "bytes=10-19"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (206, bytes(range(10, 20)))
        connection.request("HEAD", "/bucket/shard")
        answer = connection.getresponse()
        assert (answer.headers["Content-Length"], answer.read()) == ("100", b"")
        assert answer.headers["ETag"]
        connection.request("GET", "/-/count")
        assert json.loads(connection.getresponse().read()) == {"bytes": 10, "requests": 1}
        connection.close()
        server.shutdown()


def test_what_a_kill_left_is_told_from_whole_copies(tmp_path):
    from remote.kill import _left
    from remote.readers import Place

    bucket, cache = tmp_path / "bucket", tmp_path / "cache"
    (bucket / "form").mkdir(parents=True)
    cache.mkdir()
    for name in ("a.tar", "b.tar"):
        (bucket / "form" / name).write_bytes(name.encode() * 1000)
    (cache / "a.tar").write_bytes(b"a.tar" * 1000)
    (cache / "b.tar").write_bytes(b"b.tar" * 999)
    (cache / "c.tar.temp7").write_bytes(bytes(70_000))
    (cache / "c.lock").touch()
    place = Place("http://host", "form", cache, tmp_path / "shm", bucket / "form")
    left = _left(place, tmp_path, bucket, set())
    assert left["torn"] == ["cache/b.tar"]
    assert left["partial"] == ["cache/c.tar.temp7"]
    assert left["other"] == ["cache/c.lock"]


def test_results_give_ratios_of_the_same_rounds(tmp_path):
    pytest.importorskip("matplotlib")
    from peers.machine import machine
    from peers.report import write_report

    def rows(*speeds):
        row = {"cpu_s_per_1000": 1.0, "first_batch_s": 0.1, "memory_mib": 9.0, "shared_mib": 1.0}
        return [{**row, "windows_per_s": speed} for speed in speeds]

    bound = [{"decode": 100.0, "copy": 1000.0, "cpu_s_per_1000": 1.0}] * 3
    figures = {"bound": bound, "epistream, processes": rows(90, 80, 10), "LitData": rows(30, 20, 1)}
    groups = {"480x640-jpeg": {"figures": figures, "errors": {"other": "why"}, "rounds": 3}}
    write_report({"machine": machine([1.0]), "seconds": 1.0, "minutes": 1, "groups": groups}, tmp_path)
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| epistream, processes | 80 | 10-90 | 0.80 |" in page
    assert "480x640 JPEG: times the best peer (processes against LitData; at the bound 5.0) | 4 | 4.00 | yes |" in page
    assert "other gave no figures: why" in page
    assert (tmp_path / "results.png").stat().st_size > 10_000


def test_page_of_the_remote_comparison_has_a_row_for_each_reader_with_figures(tmp_path):
    from peers.machine import machine
    from remote.report import write_report
    from remote.run import LINKS

    epoch = {"fetched_share": 1.25, "requests": 7, "windows": 8, "distinct": 8, "ranks": [2, 2, 2, 2]}
    epochs = {"epochs": [epoch, {**epoch, "fetched_share": 0.0}], "peak_mib": 50.0, "peak_shared_mib": 5.0}
    left = {"torn": [], "partial": ["x"], "other": [], "shm_names": []}
    kill = {
        "others": {"finished": 2, "failed": 0, "still_waiting": 1},
        "orphans": 2,
        "left": left,
        "left_after_restart": left,
        "restart": {"finished": 3, "seconds": 9.0, "fetched_share": 0.5, "words": ""},
    }
    found = {"epochs": {**epochs, "disk_mib": 1.0, "first_batches_s": [2.0], "errors": []}, "kill": {"rank": kill}}
    report = {"machine": machine([]), "links": LINKS, "kill_at": 0.3, "others_s": 45, "readers": {"litdata": found}}
    write_report(report, tmp_path / "REMOTE.md")
    page = (tmp_path / "REMOTE.md").read_text()
    assert "| LitData | 1.25 | 0.00 | 7 | 8 | 2 |" in page
    assert "1 half-fetched" in page
    assert "3 of 4 ranks finish" in page


def test_flatness_runs_and_writes_its_page(tmp_path, monkeypatch):
    import flatness

    arguments = ["--batches", "200", "--rounds", "1", "--episodes", "20", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["flatness.py", *arguments])
    flatness.main()
    page = (tmp_path / "FLATNESS.md").read_text()
    assert "many, default order" in page
    assert "descriptors" in page


def test_before_after_measures_each_side_with_its_own_code(tmp_path, monkeypatch, capfd):
    import before_after

    for name in ("epistream", "sharding", "cache", "loader", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "epistream" / "_version.py").open("a") as file:
        file.write("import sys\nprint('earlier code', file=sys.stderr)\n")
    arguments = ["--before", str(tmp_path), "--rounds", "1", "--seconds", "0.1", "--windows", "400"]
    arguments += ["--groups", "batch-4", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["before_after.py", *arguments])
    before_after.main()
    out, problems = capfd.readouterr()
    assert problems.count("earlier code") == 2  # it packs and it is measured; the code after does not say so
    assert "batch-4" in out
    rounds = json.loads((tmp_path / "out.json").read_text())["rounds"]["batch-4"]
    assert [len(rounds[0][side]) for side in ("before", "after")] == [5, 5]
    assert all(figure > 0 for turns in rounds[0].values() for turn in turns for figure in turn.values())


def test_before_after_calls_a_group_slower_when_enough_rounds_agree():
    from before_after import ratios_of, verdict

    def rounds(*ratios):
        turn = {"windows_per_s": 100.0, "cpu_s_per_1000": 2.0}
        return [{"before": [turn], "after": [{**turn, "cpu_s_per_1000": 2.0 * ratio}]} for ratio in ratios]

    assert verdict(ratios_of(rounds(*[1.1] * 7))) == "slower: CPU"
    assert verdict(ratios_of(rounds(*[0.9] * 7))) == "faster: CPU"
    assert verdict(ratios_of(rounds(*[1.1] * 6, 0.9))) == ""
    assert verdict(ratios_of(rounds(*[1.1] * 5))) == ""
    assert verdict(ratios_of(rounds(*[1.01] * 20))) == ""


def test_one_side_refuses_an_epistream_from_elsewhere(tmp_path):
    from one_side import check_loaded

    with pytest.raises(SystemExit, match="wanted all of epistream from there"):
        check_loaded(str(tmp_path))


@pytest.mark.alone
def test_growth_measures_each_case(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "")
    import growth_cases
    from growth import write_episodes

    write_episodes(tmp_path / "raw", 4)
    for name in ("one", "two"):
        assert growth_cases.pack(str(tmp_path / "raw"), str(tmp_path / name))["bytes_read"] > 0
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    assert es.EpisodeStream(one).num_windows == 4 * 20
    monkeypatch.setattr(growth_cases, "_FILLS", 3)
    assert growth_cases.fills(entries=5)["cpu_ms"] > 0
    assert growth_cases.waiters(readers=3, seconds=0.05)["fills"] == 1
    found = growth_cases.decode(one, "once", 2.0, epochs=2)
    assert found["made"] >= 2  # the table of actions, and decoded frames
    assert {"epoch_1", "epoch_2"} < set(found)
    assert growth_cases.two_jobs([one, two], room=3.0, decode="per_read", epochs=1)["made"] == 2  # tables
    assert growth_cases.mixture([one, two])["state_bytes"] > 300
    growth_cases.write_manifest(like=one, out=str(tmp_path / "many"), episodes=1000)
    assert set(growth_cases.open_dataset(str(tmp_path / "many"), warm=one)) == {"cpu_s", "mb"}
