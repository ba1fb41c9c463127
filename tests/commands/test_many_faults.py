"""300 files with the same fault are one line with a count and three examples, whoever tells of them."""

import logging

import h5py
import pytest
from click.testing import CliRunner
from hdf5_files import aloha_jpeg, aloha_raw, manifest

import epistream as es
from epistream.commands import cli
from epistream.errors import PackError

NUM_BAD = 300


def run(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """300 files that are no HDF5, three good episodes, one without a camera and one that is cut off inside."""
    folder = tmp_path_factory.mktemp("many") / "in"
    for number in range(3):
        aloha_jpeg(folder / f"good_{number}.hdf5", 4, number)
    aloha_jpeg(folder / "odd.hdf5", 4, 5, cameras=("top",))
    with h5py.File(aloha_jpeg(folder / "torn.hdf5", 4, 3), "r+") as file:
        file["observations/images/top"][2, 200:] = 0
    for number in range(NUM_BAD):
        (folder / f"bad {number}.hdf5").write_text("no")
    return folder


@pytest.fixture(scope="module")
def packed(folder):
    """What `pack --skip-bad` makes of it, and prints."""
    out = folder.parent / "out"
    return out, run("pack", folder, out, "--skip-bad", "--workers", 1)


def says(lines, count, folder):
    """Whether one of the lines, and only one, tells of the files that are no HDF5."""
    [line] = [line for line in lines if "cannot be read as HDF5" in line]
    assert f"{count} alike: " in line
    assert [f"{folder}/bad {number}.hdf5" in line for number in range(4)] == [True, True, True, False]
    return True


def test_pack_refuses_with_a_line_for_each_kind(folder):
    with pytest.raises(PackError) as caught:
        es.pack(folder, folder.parent / "refused")
    first, *lines, last = str(caught.value).splitlines()
    assert first == "301 faults in the sources, nothing was published:"
    assert len(lines) == 2
    assert says(lines, NUM_BAD, folder)
    assert "--skip-bad" in last


def test_pack_that_skips_counts_right_and_lists_each_once(folder, packed):
    out, done = packed
    assert done.exit_code == 0, done.output
    assert "3 episodes, 12 steps from 3 act-plus-plus files\n" in done.stdout
    assert "302 left out, all of them named in the manifest:\n" in done.stdout
    assert says(done.stdout.splitlines(), NUM_BAD, folder)
    assert done.output.count("odd.hdf5") == done.output.count("torn.hdf5") == 1
    assert done.stderr == ""
    assert len(manifest(out)["provenance"]["left_out"]) == NUM_BAD + 2


def test_pack_finished_before_says_so_and_claims_nothing_of_its_frames(folder, packed):
    out, _ = packed
    again = run("pack", folder, out, "--skip-bad", "--resume", "--workers", 1)
    assert "complete already: nothing was packed" in again.stdout
    assert "3 episodes, 12 steps from 3 act-plus-plus files\n" in again.stdout
    assert "byte for byte" not in again.stdout
    assert again.output.count("torn.hdf5") == 1
    assert "302 left out" in again.stdout


def test_pack_called_from_python_warns_once_of_each_kind(folder, caplog):
    es.pack(folder, folder.parent / "called", skip_bad=True)
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(lines) == 3
    assert says(lines, NUM_BAD, folder)


def test_stream_that_skips_warns_once_of_each_kind_and_names_every_file(folder, caplog):
    stream = es.EpisodeStream(folder, on_bad="skip")
    lines = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(lines) == 3
    assert says(lines, NUM_BAD, folder)
    assert len(stream.job.dataset.skipped) == NUM_BAD + 2


def test_verify_tells_of_many_alike_faults_in_one_line(tmp_path):
    for number in range(6):
        aloha_raw(tmp_path / "in" / f"e_{number}.hdf5", 40, number)
    es.pack(tmp_path / "in", tmp_path / "out", shard_size="64KiB", codec="png")
    tars = sorted((tmp_path / "out").glob("*.tar"))
    assert len(tars) > 4
    for tar in tars:
        with tar.open("r+b") as file:
            file.truncate(1000)
    done = run("verify", tmp_path / "out")
    lines = [line for line in done.stdout.splitlines() if "alike" in line]
    assert done.exit_code == 1
    assert any(all(tar.name in line for tar in tars[:3]) and tars[3].name not in line for line in lines), done.stdout


@pytest.mark.parametrize(
    ("episodes", "fraction", "splits", "note"),
    [
        (1, 0.1, "train 1", "val_fraction 0.1 of 1 episode: one cannot be divided. All of it is train"),
        (2, 0.01, "train 1, val 1", "val_fraction 0.01 of 2 episodes: 1 (50%) are val, as each split has at least one"),
        (2, 0.99, "train 1, val 1", "val_fraction 0.99 of 2 episodes: 1 (50%) are val, as each split has at least one"),
        (4, 0.25, "train 3, val 1", None),
        (2, 0.5, "train 1, val 1", None),
        (3, 0.5, "train 1, val 2", None),
    ],
)
def test_fraction_that_the_episodes_cannot_give_is_told(tmp_path, caplog, episodes, fraction, splits, note):
    for number in range(episodes):
        aloha_jpeg(tmp_path / "in" / f"e_{number}.hdf5", 2, number, cameras=("top",))
    done = run("pack", tmp_path / "in", tmp_path / "out", "--val-fraction", fraction, "--workers", 1)
    assert f"splits: {splits}\n" in done.stdout
    assert ("val_fraction" in done.stdout) == (note is not None)
    assert note is None or note in done.stdout
    report = es.pack(tmp_path / "in", tmp_path / "again", val_fraction=fraction)
    warned = [record.getMessage() for record in caplog.records if "val_fraction" in record.getMessage()]
    assert len(report.notes) == len(warned) == (note is not None)


def test_what_is_not_packed_is_told_by_reason_with_a_count():
    from epistream.sharding.format.left_out import left_out_lines

    many = [f"/cam_{n} (a compound of {n} fields; wanted numbers)" for n in range(20)]
    assert left_out_lines(["/states", *many, "/next_obs"]) == [
        "/states, /next_obs",
        "/cam_0, /cam_1, /cam_2, /cam_3, /cam_4, /cam_5 and 14 more (a compound of 0 fields; wanted numbers)",
    ]
