"""A cold start over the network: the first batch needs a few blocks, not whole shards."""

import functools
import http.server
import os
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import epistream as es

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
    folder = tmp_path_factory.mktemp("source")
    random = np.random.default_rng(0)
    with h5py.File(folder / "demos.hdf5", "w") as file:
        for number in range(NUM_EPISODES):
            file[f"data/demo_{number}/actions"] = random.random((LENGTH, 7))
            file[f"data/demo_{number}/obs/robot0_joint_pos"] = random.random((LENGTH, 7))
            file[f"data/demo_{number}/obs/object"] = random.random((LENGTH, 100))
    out = tmp_path_factory.mktemp("packed")
    es.pack(folder, out / "shards", shard_size="1MiB")
    return out


@pytest.fixture
def server(shards):
    handler = functools.partial(RangeHandler, directory=str(shards))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.requests = []
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


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
    assert stats.bytes_fetched == fetched
    assert not Path(cache.directory).exists()
