"""A cold start over the network: the first batch needs a few blocks, not whole shards."""

import functools
import http.server
import os
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from web.serving import LoopbackServer, running

import epistream as es
from epistream.cache.node import NodeCache, OpenEntry
from epistream.cache.source.blob import Blob
from epistream.cache.store.locks import inode_holders
from epistream.errors import FetchError
from epistream.loader.reading.batch_layout import BatchLayout
from epistream.loader.reading.reader import BatchWindows, EpisodeReader, ReaderOptions
from epistream.loader.shards.cold_start import ColdReads, ColdShard, Wanted
from epistream.loader.shards.shard_entry import shard_entry
from epistream.sharding.format.index import ShardIndex

NUM_EPISODES, LENGTH = 6, 3000


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files, whole or by ranges, and writes down what was asked for."""

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.answer(send_body=False)

    def do_GET(self):
        self.answer(send_body=True)

    def answer(self, send_body):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        start, stop, status = 0, len(data), 200
        if "Range" in self.headers and send_body:
            first, _, last = self.headers["Range"].removeprefix("bytes=").partition("-")
            start, stop, status = int(first), min(int(last) + 1 if last else len(data), len(data)), 206
        self.server.requests.append((path.name, start, stop))
        self.server.on_request()
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        if send_body:
            self.wfile.write(data[start:stop])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Six shards of some MB."""
    out = tmp_path_factory.mktemp("packed")
    folder = out / "source"
    folder.mkdir()
    random = np.random.default_rng(0)
    with h5py.File(folder / "demos.hdf5", "w") as file:
        for number in range(NUM_EPISODES):
            file[f"data/demo_{number}/actions"] = random.random((LENGTH, 7))
            file[f"data/demo_{number}/obs/robot0_joint_pos"] = random.random((LENGTH, 7))
            file[f"data/demo_{number}/obs/object"] = random.random((LENGTH, 100))
    es.pack(folder, out / "shards", shard_size="1MiB")
    return out


@pytest.fixture
def server(shards):
    handler = functools.partial(RangeHandler, directory=str(shards))
    server = LoopbackServer(handler)
    server.requests, server.on_request = [], lambda: None
    with running(server):
        yield server


@pytest.fixture
def cache(tmp_path):
    return es.CacheOptions(directory=f"/dev/shm/epistream-cold-{os.getpid()}-{tmp_path.name}"[:80])


@pytest.mark.parametrize("way", [{"num_workers": 1}, {"num_workers": 0, "num_threads": 1}])
def test_cold_start_reads_the_first_batch_by_ranges_and_fills_each_shard_once(shards, server, cache, way):
    url = f"http://127.0.0.1:{server.server_port}/shards"
    options = {"batch_size": 8, "features": ["action", "observation.robot0_joint_pos"], "seed": 1}
    expected = list(es.EpisodeStream(shards / "shards", **options))
    dataset = es.open_dataset(shards / "shards")
    sizes = dict(zip((Path(u).name for u in dataset.shard_url), dataset.shard_bytes.tolist(), strict=True))
    assert min(sizes.values()) > 2 << 20
    server.requests.clear()
    with es.StreamingLoader(es.EpisodeStream(url, cache=cache, **options), timeout_s=60, **way) as loader:
        for batch, other in zip(loader, expected, strict=True):
            assert torch.equal(batch["action"], other["action"])
            assert torch.equal(batch["step_index"], other["step_index"])
        assert sum(len(batch["action"]) for batch in loader) == len(expected) * 8
        stats = loader.stats().cache
    assert stats.cold > 0
    assert stats.bytes_ranged > 0
    assert stats.fills == NUM_EPISODES
    fetched = sum(sizes.values()) + int(dataset.index_bytes.sum())
    assert stats.bytes_fetched + stats.bytes_ranged == fetched, "each byte once"
    assert not Path(cache.directory).exists()


def windows_of(dataset, shards):
    """The first step of the first episode of each shard."""
    shards = np.asarray(shards, np.int64)
    episode = np.array([np.flatnonzero(dataset.episode_shard == shard)[0] for shard in shards])
    zeros = np.zeros(len(shards), np.int64)
    return BatchWindows(shards, episode, dataset.episode_in_shard[episode], zeros, zeros.astype(bool), zeros)


@pytest.fixture
def reading(shards, server, cache, request):
    """A dataset behind the server, its cache, a reader of at most two open shards, and arrays for a batch."""
    dataset = es.open_dataset(f"http://127.0.0.1:{server.server_port}/shards")
    features = {"action": dataset.features["action"]}
    window = es.Window()
    with NodeCache(replace(cache, **getattr(request, "param", {}))) as node:
        reader = EpisodeReader(dataset, features, window, node, ReaderOptions(max_open_shards=2))
        yield dataset, node, reader, BatchLayout.plan(features, window, NUM_EPISODES).allocate()
        reader.release()


def test_cold_reads_hold_no_lease_while_they_wait_for_the_network(reading, server, cache):
    dataset, node, reader, out = reading
    node.open(shard_entry(dataset, 0)).close()
    (warm,) = Path(cache.directory).glob("*.shard")
    inode = (warm.stat().st_dev, warm.stat().st_ino)
    leased = []
    reader.read(windows_of(dataset, [0]), out)
    assert inode in inode_holders(), "kept between batches"
    server.on_request = lambda: leased.append(inode in inode_holders())
    assert reader.read(windows_of(dataset, [0, 1, 2]), out, wait=False) == 2
    assert len(leased) >= 4, "two indexes and two blocks"
    assert not any(leased)


def test_cold_reads_open_no_more_shards_at_a_time_than_allowed(reading, shards, monkeypatch):
    dataset, node, reader, out = reading
    opened, most = [], [0]
    open_entry = node.open

    def note(*arguments, **options):
        opened.append(open_entry(*arguments, **options))
        most[0] = max(most[0], sum(bool(entry.blobs) for entry in opened))
        return opened[-1]

    monkeypatch.setattr(node, "open", note)
    assert reader.read(windows_of(dataset, range(NUM_EPISODES)), out, wait=False) == NUM_EPISODES
    assert most == [2]
    assert all(entry.blobs == () for entry in opened), "closed again"
    episodes = windows_of(dataset, range(NUM_EPISODES)).episode_index
    with h5py.File(shards / "source" / "demos.hdf5") as file:
        expected = [file[f"data/demo_{number}/actions"][0] for number in episodes]
    assert np.array_equal(out["action"][:, 0], np.array(expected, np.float32))


@pytest.mark.parametrize("reading", [{"budget_bytes": 4 << 20, "room_timeout_s": 0.1}], indirect=True)
def test_a_shard_that_found_no_room_once_is_asked_for_again_with_the_next_batch(reading, server):
    dataset, node, reader, out = reading
    held = node.open(shard_entry(dataset, 0))
    assert reader.read(windows_of(dataset, [1]), out) == 1, "read by ranges"
    held.close()
    for path in Path(node.options.directory).glob("*.fill"):
        path.write_text("")  # the note of it has expired
    assert reader.read(windows_of(dataset, [1]), out) == 0
    server.requests.clear()
    assert reader.read(windows_of(dataset, [1]), out) == 0
    assert server.requests == [], "from the cache"
    assert (node.stats().bypasses, node.stats().fills) == (1, 2)


def test_cold_shards_are_closed_when_a_later_one_cannot_be_opened(reading, monkeypatch):
    dataset, node, reader, out = reading
    opened = []
    open_entry = node.open

    def refuse_the_second(*arguments, **options):
        if opened:
            raise FetchError("no")
        opened.append(open_entry(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(node, "open", refuse_the_second)
    with pytest.raises(FetchError, match="no"):
        reader.read(windows_of(dataset, [0, 1]), out, wait=False)
    assert opened[0].blobs == ()


def test_a_stream_without_a_cache_reads_only_checked_blocks_of_a_remote_source(shards, server):
    url = f"http://127.0.0.1:{server.server_port}/shards"
    options = {"batch_size": 8, "features": ["action"], "seed": 1}
    expected = list(es.EpisodeStream(shards / "shards", **options))[:3]
    dataset = es.open_dataset(shards / "shards")
    server.requests.clear()
    for batch, other in zip(es.EpisodeStream(url, cache="off", **options), expected, strict=False):
        assert torch.equal(batch["action"], other["action"])
    tars = [(start, stop) for name, start, stop in server.requests if name.endswith(".tar")]
    assert tars
    assert all(start % 65536 == 0 and stop - start <= 1 << 20 for start, stop in tars), "whole blocks, few"
    indexes = [name for name, _, _ in server.requests if name.endswith(".index")]
    assert len(indexes) == len(set(indexes)) <= dataset.num_shards, "each index once"


class Unchecked(Blob):
    """Bytes that are brought by ranges, of which nobody knows checksums."""

    has_ranges = True

    def __init__(self, size):
        self.size, self.url, self.wanted = size, "packed", []

    def read_into(self, offset, out):
        raise NotImplementedError

    def gather(self, starts, out):
        raise NotImplementedError

    def check_with(self, block_checksums, block_bytes):
        raise AssertionError("there is nothing to check with")

    def requests(self, starts, sizes):
        self.wanted += starts.tolist()
        return ()


def test_index_without_checksums_of_blocks_tells_what_to_bring_and_not_how_to_check_it(shards):
    dataset = es.open_dataset(shards / "shards")
    source = shard_entry(dataset, 0)
    index = ShardIndex.parse(Path(dataset.index_url[0]).read_bytes(), "index")
    tar = Unchecked(int(dataset.shard_bytes[0]))
    reads = ColdReads({"action": dataset.features["action"]}, max_indexes=2)
    reads._indexes.put(source.key, replace(index, block_checksums=index.block_checksums[:0]))
    cold = ColdShard(0, source, OpenEntry((tar, None), "direct", None), is_kept=False, names={})
    zeros = np.zeros(1, np.int64)
    reads.bring([Wanted(cold, zeros, zeros, {"action": zeros[None]})])
    assert tar.wanted == index.array_offset["action"][:1].tolist()
