import io
import tarfile
from pathlib import Path

import pytest
import xxhash

from epistream.errors import LayoutError, PackError
from epistream.sharding.tar.tar_writer import TarWriter


def written(members):
    file = io.BytesIO()
    writer = TarWriter(file)
    offsets = [writer.add(name, data) for name, data in members]
    writer.finish()
    return file.getvalue(), offsets, writer


MEMBERS = [
    ("ep-0.meta.json", b"{}"),
    ("ep-0.a.npy", b"x" * 512),
    ("ep-0.b.000000.jpg", b"y" * 1000),
    ("ep-0.c.npy", b""),
]


def test_tar_is_read_by_tarfile_with_fixed_owner_and_time():
    data, offsets, _ = written(MEMBERS)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        infos = tar.getmembers()
        assert [(info.name, tar.extractfile(info).read()) for info in infos] == MEMBERS
        assert [info.offset_data for info in infos] == offsets
    for info in infos:
        assert (info.mtime, info.uid, info.gid, info.uname, info.gname) == (0, 0, 0, "", "")
        assert (info.mode, info.isreg(), info.pax_headers) == (0o644, True, {})


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 70_000])
@pytest.mark.parametrize("name", ["ep-0.a.npy", "ep-000000123." + "x" * 87])
def test_member_is_byte_for_byte_what_tarfile_writes(name, size):
    data, _, _ = written([(name, b"q" * size)])
    info = tarfile.TarInfo(name)
    info.size = size
    expected = io.BytesIO()
    with tarfile.open(fileobj=expected, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(b"q" * size))
    # tarfile fills the end up to 10 KiB.
    assert expected.getvalue().startswith(data)


def test_tar_headers_are_ustar_without_prefix_and_payloads_start_at_multiples_of_512():
    data, offsets, _ = written(MEMBERS)
    for offset in offsets:
        header = data[offset - 512 : offset]
        assert offset % 512 == 0
        assert header[257:265] == b"ustar\x0000"
        assert header[345:500] == bytes(155)
    assert data.endswith(bytes(1024))
    assert len(data) % 512 == 0


def test_tar_checksums_are_those_of_the_bytes():
    data, _, writer = written(MEMBERS)
    assert writer.hasher.checksum == xxhash.xxh3_128_hexdigest(data)
    assert writer.hasher.block_checksums.tolist() == [xxhash.xxh3_64_intdigest(data)]
    assert writer.num_bytes == len(data)


def test_member_written_in_pieces_equals_one_written_whole():
    file = io.BytesIO()
    writer = TarWriter(file)
    writer.begin("ep-0.meta.json", 2)
    writer.write(b"{")
    writer.write(b"}")
    for name, data in MEMBERS[1:]:
        writer.add(name, data)
    writer.finish()
    assert file.getvalue() == written(MEMBERS)[0]


def test_roll_back_leaves_the_bytes_of_what_came_before():
    file = io.BytesIO()
    writer = TarWriter(file)
    writer.add(*MEMBERS[0])
    mark = writer.num_bytes
    writer.add("ep-1.a.npy", b"z" * 5000)
    writer.begin("ep-1.b.npy", 100)
    writer.roll_back(mark)
    for name, data in MEMBERS[1:]:
        writer.add(name, data)
    writer.finish()
    data, _, other = written(MEMBERS)
    assert file.getvalue() == data
    assert writer.hasher.checksum == other.hasher.checksum


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ep-0." + "a" * 96, "101 bytes, wanted at most 100"),
        ("ep-0.Top.jpg", "lower-case"),
        ("ep-0.a b.jpg", "without spaces"),
        ("ep-0.caméra.jpg", "ASCII"),
        ("nodot", "wanted"),
        ("ep-0.a\n.jpg", "wanted"),
    ],
)
def test_member_name_that_other_readers_trip_over_is_refused(name, words):
    with pytest.raises(LayoutError, match=words):
        written([(name, b"")])


def test_member_name_of_100_bytes_is_kept():
    name = "ep-0." + "a" * 91 + ".npy"
    assert len(name) == 100
    data, _, _ = written([(name, b"1")])
    assert data[:100] == name.encode()


def test_member_written_twice_is_refused():
    with pytest.raises(LayoutError, match="twice"):
        written([("ep-0.a.npy", b""), ("ep-0.a.npy", b"")])


def test_member_beyond_ustar_is_refused():
    with pytest.raises(LayoutError, match="8,589,934,592 bytes"):
        TarWriter(io.BytesIO()).begin("ep-0.a.npy", 8**11)


def test_full_disk_is_a_pack_error_that_names_the_file():
    with Path("/dev/full").open("wb", buffering=0) as file:
        writer = TarWriter(file)
        writer.add("ep-0.a.npy", b"1")
        with pytest.raises(PackError, match=r"/dev/full: cannot write after 0 bytes \(No space left on device\)"):
            writer.finish()
