"""Tars that only look like whole episodes, or like one tar: read right or refused in a sentence, never wrongly."""

import io
import itertools
import re
import subprocess
import tarfile

import numpy as np
import pytest
from click.testing import CliRunner
from handmade import actions, encoded, members, npy, picture, write_dataset, write_tar

import epistream as es
from epistream.commands import cli
from epistream.errors import FormatError, SourceError
from epistream.sharding.check.verify import verify
from epistream.sharding.tar.index_tar import index_tar
from epistream.sharding.tar.reindex import ReindexOptions, reindex


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


JPEG = encoded(picture(0, 0), "jpeg")
ROW = npy(np.zeros(14, np.float32))
ROWS = npy(actions(0, 24))


def steps(fields, keys="ep000_{:05d}"):
    return [(f"{keys.format(step)}.{name}", data) for step in range(3) for name, data in fields.items()]


@pytest.mark.parametrize(
    ("pairs", "found"),
    [
        ([("a.jpg", JPEG), ("a.action.npy", ROWS)], "a.tar, a: one picture, a.jpg, beside action"),
        ([("a.top.png", JPEG), ("a.action.npy", ROWS)], "a.tar, a: one picture, a.top.png, beside action"),
        ([("a.jpg", JPEG), ("a.action.npy", ROWS), ("a.meta.json", b'{"length": 24}')], "one picture, a.jpg, beside"),
        (steps({"jpg": JPEG, "action.npy": npy(np.zeros((1, 14), np.float32))}), "ep000_00000"),
        (steps({"jpg": JPEG, "action.npy": ROW}, "ep0/{:06d}"), "ep0/000000"),
        (steps({"jpg": JPEG, "action.npy": ROW}, "ep0.{:06d}"), "ep0"),
        (steps({"action.npy": ROW, "state.npy": ROW}), "ep000_00000"),
        (steps({"action.npy": npy(np.zeros((1, 14), np.float32))}), "ep000_00000"),
        ([("s.action.npy", ROW)], "s: action of shape (14,), which is one row of 14 numbers or 14 steps"),
        ([("s.action.npy", npy(np.zeros((1, 14), np.float32)))], "s: action of length 1: this may be one step"),
        ([("s.top.000000.jpg", JPEG)], "s: top of length 1: this may be one step"),
        ([("s.rgb.npy", npy(picture(0, 0)))], "s: rgb of uint8 (24, 32, 3), which is the shape of one picture"),
        ([("s.action.npy", ROW), ("s.txt", b"lift")], "s: action of shape (14,)"),
        ([("s.a.npy", ROW), ("s.b.npy", npy(np.zeros(7, np.float32)))], "s: b has 7 steps, wanted 14"),
        ([*members(0, 3), ("preview.jpg", JPEG)], "a.tar, preview.jpg: one picture of sample preview"),
        ([*members(0, 3, key="a"), ("a.npy", ROWS)], "a.tar, a.npy: data of a without the name of a feature"),
        ([*members(0, 3, key="a"), ("a.000001.json", b"{}")], "a.tar, a.000001.json: data of a without the name"),
    ],
)
def test_tar_whose_samples_may_be_steps_is_refused_by_name(tmp_path, pairs, found):
    path = write_tar(tmp_path / "a.tar", pairs)
    with pytest.raises(FormatError, match=re.escape(found)) as caught:
        es.open_dataset(path)
    assert str(caught.value).startswith("a.tar")
    assert ", wanted " in str(caught.value)


@pytest.mark.parametrize(
    ("pairs", "meta", "length"),
    [
        ([("s.reward.npy", ROW)], '{"length": 14}', 14),
        ([("s.action.npy", npy(actions(0, 1)))], '{"length": 1}', 1),
        ([("s.touch.npy", npy(picture(0, 0)))], '{"length": 24}', 24),
    ],
)
def test_tar_whose_meta_json_says_that_it_is_an_episode_is_one(tmp_path, pairs, meta, length):
    path = write_tar(tmp_path / "a.tar", [*pairs, ("s.meta.json", meta.encode())])
    assert index_tar(path).length.tolist() == [length]


def test_numbers_of_one_value_a_step_beside_frames_are_an_episode(tmp_path):
    path = write_tar(tmp_path / "a.tar", [*members(0, 3, key="s")[1:], ("s.reward.npy", npy(np.zeros(3, np.float32)))])
    assert index_tar(path).features["reward"].shape == ()


def test_what_is_no_part_of_an_episode_is_left_out_and_told(tmp_path, caplog):
    more = [("ep0.thumbnail.jpg", JPEG), ("README.txt", b"x"), ("stats.npy", ROWS), ("ep1.meta.json", b"{}")]
    path = write_tar(tmp_path / "a.tar", [*members(0, 3, key="ep0"), *more])
    assert list(index_tar(path).keys) == ["ep0"]
    for name, _ in more:
        assert name in caplog.text


def tar_bytes(folder, episode):
    return write_tar(folder / "one.tar", members(episode, 3)).read_bytes()


SECOND = "a second tar, with 'ep-000000001.action.npy', begins at byte"


@pytest.mark.parametrize("between", [0, 512, 10240])
def test_second_tar_behind_the_end_of_the_first_is_refused(tmp_path, between):
    first, second = tar_bytes(tmp_path, 0), tar_bytes(tmp_path, 1)
    (tmp_path / "a.tar").write_bytes(first + bytes(between) + second)
    message = re.escape(f"a.tar: the tar ends after 4 members at byte 5,632, and {SECOND} {len(first) + between:,}")
    with pytest.raises(FormatError, match=f"{message}.*tar --concatenate"):
        es.open_dataset(tmp_path / "a.tar")


def test_second_tar_behind_a_single_block_of_zeros_is_refused(tmp_path):
    whole = tar_bytes(tmp_path, 0)[:5632] + bytes(512)
    (tmp_path / "a.tar").write_bytes(whole + tar_bytes(tmp_path, 1))
    with pytest.raises(FormatError, match=re.escape(f"{SECOND} 6,144")):
        es.open_dataset(tmp_path / "a.tar")


@pytest.mark.parametrize(("more", "at"), [(b"rubbish", "10,240"), (bytes(700) + b"x" * 9, "10,940")])
def test_bytes_that_are_no_tar_behind_the_end_are_refused(tmp_path, more, at):
    (tmp_path / "a.tar").write_bytes(tar_bytes(tmp_path, 0) + more)
    with pytest.raises(
        FormatError, match=rf"and {len(more.lstrip(bytes(1)))} bytes that are no tar follow at byte {at}"
    ):
        es.open_dataset(tmp_path / "a.tar")


@pytest.mark.parametrize("padding", [0, 512, 100_000, 3 << 20])
def test_zeros_behind_the_end_are_padding(tmp_path, padding):
    (tmp_path / "a.tar").write_bytes(tar_bytes(tmp_path, 0) + bytes(padding))
    assert es.open_dataset(tmp_path / "a.tar").episode_length.tolist() == [3]


def test_tars_joined_by_tar_itself_are_read_whole(tmp_path):
    for episode, name in enumerate(["a.tar", "b.tar"]):
        write_tar(tmp_path / name, members(episode, 3 + episode), tarfile.GNU_FORMAT)
    subprocess.run(["tar", "--concatenate", "--file=a.tar", "b.tar"], cwd=tmp_path, check=True)
    assert es.open_dataset(tmp_path / "a.tar").episode_length.tolist() == [3, 4]


@pytest.mark.parametrize("emit", [(), ("wids",)])
def test_second_tar_behind_a_packed_shard_is_found_by_verify_and_index(tmp_path, emit):
    folder = write_dataset(tmp_path / "packed")
    dataset = es.open_dataset(folder)
    shard = folder / "shard-000000.tar"
    shard.write_bytes(shard.read_bytes() + (folder / "shard-000001.tar").read_bytes())
    found = [str(fault) for fault in verify(dataset).faults]
    assert any("a second tar, with 'ep-000000002.meta.json', begins at byte 20,480" in fault for fault in found)
    with pytest.raises(FormatError, match="a second tar"):
        reindex(folder, ReindexOptions(overwrite=not emit, emit=emit))


def odd(path, *infos):
    """A tar with one good member and then odd ones."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, data in ((tarfile.TarInfo("ep0.action.npy"), ROWS), *infos):
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def info(name, **fields):
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.mark.parametrize(
    ("member", "found"),
    [
        (info("ep1.action.npy", type=tarfile.LNKTYPE, linkname="ep0.action.npy"), "a hard link to ep0.action.npy"),
        (info("ep1.action.npy", type=tarfile.SYMTYPE, linkname="/etc/passwd"), "a symbolic link to /etc/passwd"),
        (info("ep1.action.npy", type=tarfile.FIFOTYPE), "of type b'6', which is no file"),
        (info("ep1.action.npy", type=b"M"), "of type b'M', which is no file"),
    ],
)
def test_member_that_is_no_file_is_refused_by_kind(tmp_path, member, found):
    path = odd(tmp_path / "a.tar", (member, b""))
    with pytest.raises(FormatError, match=rf"a\.tar, ep1\.action\.npy: {re.escape(found)}.*Make the tar again"):
        index_tar(path)


@pytest.mark.parametrize("format", ["gnu", "pax"])
def test_sparse_member_is_refused(tmp_path, format):
    with (tmp_path / "ep0.action.npy").open("wb") as file:
        file.write(npy(np.zeros((100_000, 3), np.float32))[:128])
        file.truncate(128 + 1_200_000)
    command = ["tar", "--create", "--sparse", f"--format={format}", "--file=a.tar", "ep0.action.npy"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with pytest.raises(FormatError, match=r"ep0\.action\.npy: a sparse file.*without --sparse"):
        index_tar(tmp_path / "a.tar")


@pytest.mark.parametrize("name", ["../ep1.action.npy", "x/../ep1.action.npy"])
def test_name_that_leads_out_of_the_tar_is_refused(tmp_path, name):
    with pytest.raises(FormatError, match="a name that leads out of the tar"):
        index_tar(odd(tmp_path / "a.tar", (info(name), ROWS)))


@pytest.mark.parametrize("name", ["\u00e9pisode.action.npy", "ep\n1.action.npy"])
def test_key_that_an_index_cannot_hold_is_refused_with_the_tar(tmp_path, name):
    with pytest.raises(FormatError, match=r"a\.tar, .*wanted printable ASCII\. Rename"):
        index_tar(odd(tmp_path / "a.tar", (info(name), ROWS)))


def test_pax_size_below_zero_is_refused(tmp_path):
    path = odd(tmp_path / "a.tar", (info("ep1.action.npy", pax_headers={"size": "-1024"}), b""))
    with pytest.raises(FormatError, match="-1,024 bytes in its header"):
        index_tar(path)


def test_pax_headers_that_say_name_and_size_are_followed(tmp_path):
    said = {"path": "/" + "long-" * 40 + "/ep1.action.npy", "size": str(len(ROWS))}
    path = odd(tmp_path / "a.tar", (info("x", pax_headers=said), ROWS), (info("ep2.action.npy"), ROWS))
    assert list(index_tar(path).keys) == ["ep0", said["path"][: -len(".action.npy")], "ep2"]


def test_folders_in_a_tar_are_no_members(tmp_path):
    folders = [(info(name, type=tarfile.DIRTYPE), b"") for name in ("ep1.action.npy", "ep0", "ep0/cam.jpg")]
    assert list(index_tar(odd(tmp_path / "a.tar", *folders)).keys) == ["ep0"]


def test_members_of_several_samples_in_turns_are_each_read_with_their_own(tmp_path):
    pairs = [members(episode, 4, key=key) for episode, key in enumerate("ab")]
    path = write_tar(tmp_path / "a.tar", itertools.chain.from_iterable(zip(*pairs, strict=True)))
    for episode, batch in enumerate(es.EpisodeStream(path, batch_size=4, shuffle=False)):
        np.testing.assert_array_equal(batch["action"][:, 0].numpy(), actions(episode, 4))


@pytest.mark.parametrize("name", ["a.tar.gz", "a.tgz", "a.tar.zst", "a.tar.xz"])
@pytest.mark.parametrize("is_there", [True, False])
def test_compressed_tar_is_refused_with_the_cure(tmp_path, name, is_there):
    if is_there:
        (tmp_path / name).write_bytes(b"compressed")
    with pytest.raises(SourceError, match="Compressed tars cannot be read at random: decompress it first"):
        es.open_dataset(tmp_path / name)
    said = CliRunner().invoke(cli, ["index", str(tmp_path / name)], catch_exceptions=True)
    assert "decompress them first" in str(said.exception) + said.output


def test_folder_of_compressed_tars_is_refused_with_the_cure(tmp_path):
    (tmp_path / "a.tar.gz").write_bytes(b"compressed")
    with pytest.raises(SourceError, match=r"Found 1 compressed tars\..*decompress them first"):
        es.open_dataset(tmp_path)
    with pytest.raises(SourceError, match=r"no tars but compressed ones.*decompress them first"):
        reindex(tmp_path)
