"""``gs://`` and ``hf://`` by their own packages, against stores on loopback; skipped where a package is missing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xxhash
from fake_stores import FakeStore, fake_store

from epistream.cache.node import CacheOptions, NodeCache
from epistream.cache.source.entry import Entry, Part
from epistream.errors import SourceError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

PACKAGES = {"gs": "gcsfs", "hf": "huggingface_hub"}
ROOTS = {"gs": "gs://episodes", "hf": "hf://datasets/lab/episodes"}
DATA = np.random.default_rng(9).integers(0, 256, (9 << 20) + 11, dtype=np.uint8).tobytes()


@pytest.fixture(params=["gs", "hf"])
def protocol(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    # Read when the package is imported: it would ask by gRPC what kind of bucket this is.
    monkeypatch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    pytest.importorskip(PACKAGES[request.param])
    return request.param


@pytest.fixture
def store(protocol: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStore]:
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with fake_store(protocol) as made:
        made.objects["set/s.tar"] = DATA
        yield made


def options_of(protocol: str, store: FakeStore) -> dict[str, object]:
    """What a user would put into ``storage_options``."""
    if protocol == "gs":
        return {"endpoint_url": store.url, "token": "anon"}
    return {"endpoint": store.url, "token": False}


def entry_of(protocol: str, **changes: object) -> Entry:
    facts = {"url": f"{ROOTS[protocol]}/set/s.tar", "size": len(DATA), "checksum": xxhash.xxh3_128_hexdigest(DATA)}
    return Entry((Part(**{**facts, **changes}),))


def test_shard_is_fetched_once_and_then_hit(cache_path: Path, protocol: str, store: FakeStore) -> None:
    with NodeCache(CacheOptions(directory=str(cache_path)), options_of(protocol, store)) as cache:
        for _ in range(2):
            with cache.open(entry_of(protocol)) as opened:
                assert opened.tier == "shm"
                assert bytes(opened.blobs[0].read(0, len(DATA))) == DATA
        stats = cache.stats()
    assert (stats.fills, stats.hits, stats.bytes_fetched) == (1, 1, len(DATA))
    chunk = 4 << 20
    assert sorted(store.ranges) == sorted(
        f"bytes={start}-{min(start + chunk, len(DATA)) - 1}" for start in range(0, len(DATA), chunk)
    ), "every byte goes over the network once"


def test_ranges_without_the_cache_ask_for_no_more_than_their_blocks(protocol: str, store: FakeStore) -> None:
    with (
        NodeCache(CacheOptions(mode="off"), options_of(protocol, store)) as cache,
        cache.open(entry_of(protocol)) as opened,
    ):
        assert bytes(opened.blobs[0].read(5 << 20, 99)) == DATA[5 << 20 : (5 << 20) + 99]
    assert store.ranges == [f"bytes={5 << 20}-{(6 << 20) - 1}"]


def test_object_without_a_checksum_is_known_by_its_version(cache_path: Path, protocol: str, store: FakeStore) -> None:
    changed = DATA[::-1]
    entry = entry_of(protocol, checksum=None)
    for data in (DATA, changed):
        store.objects["set/s.tar"] = data
        # File systems remember what they listed; a new process would ask anew.
        options = {**options_of(protocol, store), "skip_instance_cache": True}
        with (
            NodeCache(CacheOptions(directory=str(cache_path), keep=True), options) as cache,
            cache.open(entry) as opened,
        ):
            assert bytes(opened.blobs[0].read(0, 9)) == data[:9]
            assert cache.stats().fills == 1


def test_object_that_is_missing_is_a_named_error(cache_path: Path, protocol: str, store: FakeStore) -> None:
    url = f"{ROOTS[protocol]}/set/none.tar"
    with (
        NodeCache(CacheOptions(directory=str(cache_path)), options_of(protocol, store)) as cache,
        pytest.raises(SourceError, match=f"{url}: .*Check the URL and the credentials"),
    ):
        cache.open(entry_of(protocol, url=url))
