"""The container: what is written is read back without a copy, and nothing torn or hostile gets through."""

import contextlib
import struct

import msgpack
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from epistream.errors import FormatError, VersionError
from epistream.sharding.format.tables import Names, parse_tables, write_tables

ARRAYS = {
    "a": np.arange(5, dtype=np.int64),
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "none": np.zeros(0, np.uint8),
    "c": np.frombuffer(b"\x01\x02\x03", np.uint8),
}


def parse(data, **options):
    return parse_tables(data, "test", "x.tables", "Make it again.", **options)


def container(header, body=b"", version=1, magic=b"\x89EST\r\n\x1a\n", header_bytes=None, file_bytes=None):
    """A file with correct checksums around any header: what an attacker would make."""
    raw = header if isinstance(header, bytes) else msgpack.packb(header)
    start = -(-(40 + len(raw)) // 64) * 64
    prefix = struct.pack(
        "<8sIIQQ",
        magic,
        version,
        len(raw) if header_bytes is None else header_bytes,
        start + len(body) if file_bytes is None else file_bytes,
        xxhash.xxh3_64_intdigest(body),
    )
    digest = struct.pack("<Q", xxhash.xxh3_64_intdigest(prefix + raw))
    return prefix + digest + raw + bytes(start - 40 - len(raw)) + body


def test_tables_are_laid_out_as_the_specification_says():
    data = write_tables("test", {"n": 1}, ARRAYS)
    magic, version, header_bytes, file_bytes, _ = struct.unpack_from("<8sIIQQ", data)
    assert (magic, version, file_bytes) == (bytes.fromhex("894553540d0a1a0a"), 1, len(data))
    header = msgpack.unpackb(data[40 : 40 + header_bytes])
    assert header["kind"] == "test"
    assert header["meta"] == {"n": 1}
    start = -(-(40 + header_bytes) // 64) * 64
    assert header["tables"]["a"] == ["<i8", [5], 0]
    assert header["tables"]["b"] == ["<f4", [2, 3], 64]
    assert data[start : start + 40] == ARRAYS["a"].tobytes()
    assert data[start + 64 : start + 88] == ARRAYS["b"].tobytes()


def test_parsed_tables_are_read_only_views_of_the_buffer():
    data = write_tables("test", {"n": 1}, ARRAYS)
    tables = parse(data)
    assert tables.meta == {"n": 1}
    whole = np.frombuffer(data, np.uint8)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(tables.arrays[name], array)
        assert tables.arrays[name].dtype == array.dtype
        assert not tables.arrays[name].flags.writeable
        assert not array.size or np.shares_memory(tables.arrays[name], whole)


def test_same_input_gives_same_bytes_and_big_endian_is_stored_little():
    big = {"a": np.arange(5, dtype=">i8")}
    assert write_tables("test", {}, big) == write_tables("test", {}, {"a": np.arange(5, dtype="<i8")})


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_file_with_flipped_or_missing_bytes_is_refused(data):
    whole = write_tables("test", {"n": 1}, ARRAYS)
    torn = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 3))):
        if torn:
            torn[data.draw(st.integers(0, len(torn) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        tables = parse(bytes(torn))
    except FormatError as error:  # VersionError is one
        text = str(error)
    else:
        # What no checksum covers is the padding after the header.
        text = "x.tables: Make it again."
        for name, array in ARRAYS.items():
            np.testing.assert_array_equal(tables.arrays[name], array)
    assert text.startswith("x.tables: ")
    assert "Make it again." in text


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["kind", "meta", "tables", "a"]), inner)
        ),
    )
)
@settings(max_examples=100, deadline=None)
def test_any_msgpack_header_is_read_or_refused(value):
    header = {"kind": "test", "meta": {}, "tables": {"a": value}} if not isinstance(value, dict) else value
    with contextlib.suppress(FormatError):
        parse(container(header, bytes(256)))


@given(
    st.lists(
        st.one_of(
            st.sampled_from(["<u1", "<i8", "O", "<f4", ">i8"]),
            st.lists(st.integers(-1, 2**63), max_size=5),
            st.integers(-64, 2**64 - 1),
        ),
        min_size=3,
        max_size=3,
    )
)
@settings(max_examples=200, deadline=None)
def test_any_table_entry_gives_a_view_inside_the_file_or_is_refused(entry):
    data = container({"kind": "test", "meta": {}, "tables": {"a": entry}}, bytes(256))
    try:
        array = parse(data).arrays["a"]
    except FormatError:
        return
    assert array.nbytes <= 256


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes, wanted at least 40"),
        (b"PK\x03\x04" * 20, "begins with 50 4b 03 04"),
        (container({}, magic=b"\x89EST\n\x1a\n\x00"), "begins with 89 45 53 54 0a"),
        (container({}, file_bytes=1000), "64 bytes, wanted 1,000: torn"),
        (container({}, header_bytes=2**32 - 1), "a header of 4,294,967,295 bytes"),
        (container({"kind": "other"}), "holds 'other', wanted 'test'"),
        (container({"kind": "test", "meta": []}), "without 'meta' or 'tables'"),
        (container(b"\xc1"), "no msgpack"),
        (container(b"\xdd\xff\xff\xff\xff"), "no msgpack"),
        (container(b"\xdd\x00\x00\x0f\xff" * 1100), "no msgpack"),
        (container(b"\x91" * 100_000), "no msgpack"),
        (container(b"\xd6\xff\x00\x00\x00\x00"), "wanted a map"),
        (container(b"\xc7\x01\x05\x00"), "extension type 5"),
        (container({"kind": "test", "meta": {}, "tables": {"a": ["<i8", [33], 0]}}, bytes(256)), "264 bytes at 0"),
        (container({"kind": "test", "meta": {}, "tables": {"a": ["<i8", [1], 8]}}, bytes(256)), "a multiple of 64"),
        (container({"kind": "test", "meta": {}, "tables": {"a": ["<i8", [2**40, 2**40, 0], 0]}}, bytes(64)), "shape"),
        (container({"kind": "test", "meta": {}, "tables": {"a": ["<i8", [2**32, 2**32], 0]}}, bytes(64)), "bytes at 0"),
        (container({"kind": "test", "meta": {}, "tables": {"a": ["|O", [1], 0]}}, bytes(64)), "dtype '|O'"),
        (container({"kind": "test", "meta": {}, "tables": {"a": ["<i8", [True], 0]}}, bytes(64)), "shape [True]"),
    ],
)
def test_hostile_file_is_refused_with_what_was_found(data, message):
    with pytest.raises(FormatError) as caught:
        parse(data)
    assert message in str(caught.value)
    assert str(caught.value).endswith("Make it again.")


def test_later_version_is_a_version_error_that_names_both():
    with pytest.raises(VersionError, match=r"format version 7, wanted 1\. Install a release"):
        parse(container({}, version=7))


def test_changed_table_is_found_unless_the_caller_knows_the_checksum():
    data = bytearray(write_tables("test", {}, ARRAYS))
    data[-64] ^= 1
    with pytest.raises(FormatError, match="tables with checksum"):
        parse(bytes(data))
    parse(bytes(data), verify_body=False)


def test_header_too_large_to_be_read_is_refused_when_written():
    with pytest.raises(FormatError, match="wanted at most 1,048,576 bytes"):
        write_tables("test", {"x": "y" * (1 << 20)}, {})


def test_names_come_back_and_are_compared_as_texts():
    names = Names(Names.pack(["a", "bé", "c"]), 3, "x")
    assert list(names) == ["a", "bé", "c"]
    assert (len(names), names[-1], names[:2]) == (3, "c", ("a", "bé"))
    assert names == ["a", "bé", "c"]
    assert list(Names(Names.pack([]), 0, "x")) == []


@pytest.mark.parametrize("blob", [b"a\nb", b"a\nb\nc\nd", b"\xff\n\n", b""])
def test_names_that_are_torn_are_refused_when_looked_at(blob):
    names = Names(np.frombuffer(blob, np.uint8), 3, "x.index")
    assert len(names) == 3
    with pytest.raises(FormatError, match=r"x\.index"):
        names[0]


@pytest.mark.parametrize("name", ["", "a\nb", "a\x00"])
def test_names_that_cannot_be_stored_are_refused(name):
    with pytest.raises(FormatError, match="no control characters"):
        Names.pack([name])
