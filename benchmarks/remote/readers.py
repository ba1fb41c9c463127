"""Each loader of the remote comparison as its documentation sets it up for several ranks on one node.

A reader opens the bucket in one rank; its epochs yield batches (dicts). All decode with simplejpeg, two workers a rank.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.compat import allow_torchvision
from peers.data import Scenario
from peers.samples import WebdatasetDecoder, decoded
from torch.utils.data import DataLoader

BATCH_SIZE = 16
NUM_WORKERS = 2
BUCKET = "bench"
SCENARIO = Scenario("remote", (480, 640), "jpeg", 4480, numbered=True, file_bytes=8 << 20, shard_bytes=8 << 20)


@dataclass(frozen=True)
class Place:
    """Where a rank reads and keeps.

    Attributes:
        endpoint: the server, http://host:port.
        store: the form's folder there, a name of `peers.writers.WRITERS`.
        cache: a folder on disk that the node's ranks share.
        shm: a folder in shared memory that they share.
        folder: the served files, for what a loader wants listed (WebDataset's shard names).
    """

    endpoint: str
    store: str
    cache: Path
    shm: Path
    folder: Path

    @property
    def http(self) -> str:
        """The folder's address."""
        return f"{self.endpoint}/{BUCKET}/{self.store}"

    @property
    def s3(self) -> str:
        """The same for S3 clients."""
        return f"s3://{BUCKET}/{self.store}"


Epoch = Callable[[], Iterable[dict[str, Any]]]


@dataclass(frozen=True)
class Reader:
    """One loader.

    Attributes:
        title: in the tables.
        form: the files that it reads.
        load: imports it, which no figure counts.
        start: opens it in a rank; what it gives begins an epoch at each call.
        is_exact: whether an epoch of all ranks is meant to give each window once.
    """

    title: str
    form: str
    load: Callable[[], None]
    start: Callable[[Place], Epoch]
    is_exact: bool = True


def nothing(place: Place) -> Epoch:
    """Only what every rank has: torch and a process group."""
    return list


def load_epistream() -> None:
    import epistream as es

    _ = (es.EpisodeStream, es.StreamingLoader, es.CacheOptions, es.OrderOptions)


def epistream(*, decode: str = "auto", keep: bool = False) -> Callable[[Place], Epoch]:
    """Defaults, but for where the cache lies: the benchmark looks there afterwards."""

    def start(place: Place) -> Epoch:
        import epistream as es

        stream = es.EpisodeStream(
            f"{place.http}/epistream",
            batch_size=BATCH_SIZE,
            window=es.Window(action=range(SCENARIO.chunk)),
            decode=decode,
            cache=es.CacheOptions(directory=str(place.shm / "epistream"), keep=keep),
        )
        loader = es.StreamingLoader(stream, num_workers=NUM_WORKERS)
        return lambda: loader

    return start


def load_webdataset() -> None:
    import webdataset  # noqa: F401


def webdataset(*, resampled: bool) -> Callable[[Place], Epoch]:
    """`cache_dir`, and either of the two ways that its documentation gives for several ranks."""

    def start(place: Place) -> Epoch:
        import webdataset as wds

        urls = [f"{place.http}/{path.name}" for path in sorted(place.folder.glob("*.tar"))]
        if resampled:
            data = wds.WebDataset(urls, resampled=True, nodesplitter=wds.split_by_node, cache_dir=str(place.cache))
        else:
            data = wds.WebDataset(
                urls,
                shardshuffle=len(urls),
                nodesplitter=wds.split_by_node,
                cache_dir=str(place.cache),
                empty_check=False,
            )
        data = data.shuffle(200).map(WebdatasetDecoder(SCENARIO))
        data = data.batched(BATCH_SIZE, collation_fn=torch.utils.data.default_collate)
        if resampled:
            ranks = int(os.environ["WORLD_SIZE"])
            data = data.with_epoch(SCENARIO.num_steps // BATCH_SIZE // ranks // NUM_WORKERS)
        loader = DataLoader(data, batch_size=None, num_workers=NUM_WORKERS, persistent_workers=True)
        return lambda: loader

    return start


def load_mosaicml() -> None:
    allow_torchvision()
    import streaming  # noqa: F401


def mosaicml(place: Place) -> Epoch:
    """`remote` in S3, `local` shared by the ranks."""
    os.environ["S3_ENDPOINT_URL"] = place.endpoint
    from streaming import StreamingDataset

    class Decoding(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> dict[str, Any]:
            return decoded(super().__getitem__(at))

    data = Decoding(remote=place.s3, local=str(place.cache), shuffle=True, batch_size=BATCH_SIZE)
    for stream in data.streams:
        # The client that fetched the index would be shared with the forked workers, its open connection too. Over TLS
        # they would notice and connect anew; without, they read each other's answers, and most cold starts failed.
        stream._downloader.clean_up()
    loader = DataLoader(data, batch_size=BATCH_SIZE, num_workers=NUM_WORKERS, persistent_workers=True)
    return lambda: loader


def load_litdata() -> None:
    import litdata  # noqa: F401
    from litdata.streaming import downloader

    # Its S3 client of first choice (obstore) refuses servers without TLS, and no option of LitData reaches this.
    downloader._OBSTORE_CLIENT_OPTIONS["allow_http"] = "true"


def litdata(place: Place) -> Epoch:
    """S3 with its own endpoint; `cache_dir` shared by the ranks."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Decoding(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> dict[str, Any]:
            return decoded(super().__getitem__(at))

    data = Decoding(
        place.s3,
        cache_dir=str(place.cache),
        shuffle=True,
        drop_last=True,
        storage_options={
            "endpoint_url": place.endpoint,
            "aws_access_key_id": "none",
            "aws_secret_access_key": "none",
            "region_name": "us-east-1",
        },
    )
    loader = StreamingDataLoader(data, batch_size=BATCH_SIZE, num_workers=NUM_WORKERS, persistent_workers=True)
    return lambda: loader


def windows_of(batch: dict[str, Any]) -> list[int]:
    """Which windows a batch has: episode x 10,000 + step, from the state's first two numbers."""
    state = batch.get("observation.state", batch.get("state", batch.get("state.npy")))
    numbers = np.asarray(state).reshape(len(state), -1)[:, :2].astype(np.int64)
    return [int(episode) * 10_000 + int(step) for episode, step in numbers]


READERS = {
    "nothing": Reader("nothing: torch and a process group", "epistream", lambda: None, nothing),
    "epistream": Reader("epistream, decode=per_read", "epistream", load_epistream, epistream(decode="per_read")),
    "epistream-keep": Reader(
        "epistream, keep=True", "epistream", load_epistream, epistream(decode="per_read", keep=True)
    ),
    "epistream-decoded": Reader("epistream, default", "epistream", load_epistream, epistream()),
    "webdataset-split": Reader("WebDataset, split_by_node", "webdataset", load_webdataset, webdataset(resampled=False)),
    "webdataset-resampled": Reader(
        "WebDataset, resampled", "webdataset", load_webdataset, webdataset(resampled=True), is_exact=False
    ),
    "mosaicml": Reader("MosaicML Streaming", "mosaicml", load_mosaicml, mosaicml),
    "litdata": Reader("LitData", "litdata", load_litdata, litdata),
}
