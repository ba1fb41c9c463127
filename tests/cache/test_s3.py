"""The S3 protocol, against a server on loopback; skipped where moto or s3fs are not installed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from web.bucket import s3_bucket

from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Entry, Part
from epistream.errors import SourceError

pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

DATA = np.random.default_rng(8).integers(0, 256, (9 << 20) + 11, dtype=np.uint8).tobytes()


@pytest.fixture(scope="module")
def storage_options() -> Iterator[dict[str, Any]]:
    """A bucket "episodes" with DATA in "set/s.tar", and how to reach it."""
    with s3_bucket("episodes") as (files, options):
        files.pipe_file("episodes/set/s.tar", DATA)
        yield options


def part_of(**changes: Any) -> Part:
    facts = {
        "url": "s3://episodes/set/s.tar",
        "size": len(DATA),
        "checksum": xxhash.xxh3_128_hexdigest(DATA),
        **changes,
    }
    return Part(**facts)


@pytest.mark.parametrize("per_protocol", [False, True])
def test_s3_shard_is_fetched_once_and_then_hit(
    cache_path: Path, storage_options: dict[str, Any], per_protocol: bool
) -> None:
    options = {"s3": storage_options} if per_protocol else storage_options
    with NodeCache(CacheOptions(directory=str(cache_path)), options) as cache:
        for _ in range(2):
            with cache.open(Entry((part_of(),))) as opened:
                assert opened.tier == "shm"
                assert bytes(opened.blobs[0].read(0, len(DATA))) == DATA
        stats = cache.stats()
    assert (stats.fills, stats.hits, stats.bytes_fetched) == (1, 1, len(DATA))


def test_s3_shard_is_read_by_ranges_without_the_cache(storage_options: dict[str, Any]) -> None:
    with (
        NodeCache(CacheOptions(mode="off"), storage_options) as cache,
        cache.open(Entry((part_of(),))) as opened,
    ):
        assert bytes(opened.blobs[0].read(5 << 20, 99)) == DATA[5 << 20 : (5 << 20) + 99]
        assert cache.stats().bytes_ranged == 1 << 20


def test_s3_object_without_a_checksum_is_known_by_its_etag(cache_path: Path, storage_options: dict[str, Any]) -> None:
    with NodeCache(CacheOptions(directory=str(cache_path)), storage_options) as cache:
        for _ in range(2):
            with cache.open(Entry((part_of(checksum=None),))) as opened:
                assert bytes(opened.blobs[0].read(0, 9)) == DATA[:9]
        assert cache.stats().fills == 1


@pytest.mark.parametrize("url", ["s3://episodes/set/none.tar", "s3://no-such-bucket/s.tar"])
def test_s3_object_that_is_missing_is_a_named_error(
    cache_path: Path, storage_options: dict[str, Any], url: str
) -> None:
    with (
        NodeCache(CacheOptions(directory=str(cache_path)), storage_options) as cache,
        pytest.raises(SourceError, match=f"{url}: .*Check the URL and the credentials"),
    ):
        cache.open(Entry((part_of(url=url),)))
