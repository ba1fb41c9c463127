"""WebDataset, MosaicML Streaming and LitData: loaders of fixed samples, as their users run them and in their best form.

An epoch's end costs some of them a restart, so that they get endless or long epochs where they have such a thing.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers.compat import allow_torchvision
from peers.contender import BATCH_SIZE, NUM_WORKERS, Batches, Contender, Sample, forever, jpeg, world
from peers.data import Scenario
from torch.utils.data import DataLoader

# Epochs of that many passes, where a loader lets one say so.
_PASSES = 50


def load_webdataset() -> None:
    import webdataset  # noqa: F401


def webdataset_default(scenario: Scenario, folder: Path) -> Batches:
    """As in its README: its own decoder, batches made by the DataLoader."""
    import webdataset as wds

    tars = sorted(map(str, folder.glob("*.tar")))
    data = wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False, nodesplitter=_split(wds))
    data = data.shuffle(1000).decode("rgb8").map(_without_key)
    return forever(DataLoader(data, batch_size=BATCH_SIZE, num_workers=NUM_WORKERS))


def webdataset_tuned(scenario: Scenario, folder: Path, *, num_workers: int = NUM_WORKERS) -> Batches:
    """simplejpeg, batches made in the workers, workers that stay, shards over and over."""
    import webdataset as wds

    tars = sorted(map(str, folder.glob("*.tar")))
    data = wds.WebDataset(tars, shardshuffle=len(tars), empty_check=False, nodesplitter=_split(wds))
    data = data.repeat().shuffle(100, initial=16).map(WebdatasetDecoder(scenario))
    data = data.batched(BATCH_SIZE, collation_fn=torch.utils.data.default_collate)
    return forever(DataLoader(data, batch_size=None, num_workers=num_workers, persistent_workers=True))


def _split(wds: Any) -> Any:
    return wds.single_node_only if world()[1] == 1 else wds.split_by_node


def _without_key(sample: Sample) -> Sample:
    return {name: value for name, value in sample.items() if not name.startswith("__")}


@dataclass(frozen=True)
class WebdatasetDecoder:
    """A tar's members as arrays."""

    scenario: Scenario

    def __call__(self, sample: Sample) -> Sample:
        decoded: Sample = {}
        for name, value in sample.items():
            if name.endswith(".jpg"):
                decoded[name] = jpeg(value)
            elif name.endswith(".raw"):
                decoded[name] = np.frombuffer(bytearray(value), np.uint8).reshape(self.scenario.picture_shape)
            elif name.endswith(".npy"):
                decoded[name] = _npy(value)
        return decoded


def _npy(data: bytes) -> np.ndarray:
    """A version 1 .npy, without the parser of np.load, which costs 30 us."""
    start = 10 + int.from_bytes(data[8:10], "little")
    header = data[10:start]
    dtype = np.dtype(np.bool_ if b"'|b1'" in header else np.float32)
    shape = tuple(int(n) for n in header.partition(b"'shape': (")[2].partition(b")")[0].split(b",") if n.strip())
    return np.frombuffer(bytearray(data[start:]), dtype).reshape(shape)


def load_mosaicml() -> None:
    allow_torchvision()
    import streaming  # noqa: F401


def mosaicml(scenario: Scenario, folder: Path, *, num_workers: int = NUM_WORKERS) -> Batches:
    """StreamingDataset over local MDS files."""
    from streaming import StreamingDataset

    class Decoding(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> Sample:
            return decoded(super().__getitem__(at))

    data = Decoding(local=str(folder), shuffle=True, batch_size=BATCH_SIZE, epoch_size=_PASSES * scenario.num_steps)
    return forever(DataLoader(data, batch_size=BATCH_SIZE, num_workers=num_workers, persistent_workers=True))


def load_litdata() -> None:
    import litdata  # noqa: F401


def litdata(scenario: Scenario, folder: Path, *, num_workers: int = NUM_WORKERS) -> Batches:
    """StreamingDataset over local chunks, with its own DataLoader."""
    from litdata import StreamingDataLoader, StreamingDataset

    class Decoding(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> Sample:
            return decoded(super().__getitem__(at))

    data = Decoding(str(folder), shuffle=True, drop_last=True)
    return forever(StreamingDataLoader(data, batch_size=BATCH_SIZE, num_workers=num_workers, persistent_workers=True))


def decoded(sample: Sample) -> Sample:
    """Encoded pictures as arrays, arrays as copies that can be written."""
    return {
        name: jpeg(value) if isinstance(value, bytes | memoryview) else np.array(value)
        for name, value in sample.items()
    }


_EVERY = ("jpeg", "raw", "numbers")


def _forms(title: str, form: str, load: Callable[[], None], start: Any) -> tuple[Contender, ...]:
    """A loader as such, with twice the workers, and holding raw frames instead of decoding."""
    return (
        Contender(title, form, _EVERY, load, start, in_ranks=True),
        Contender(f"{title}, 4 workers", form, ("jpeg",), load, partial(start, num_workers=2 * NUM_WORKERS)),
        Contender(f"{title}, raw frames", form, ("jpeg",), load, start, holds_raw=True),
    )


CONTENDERS = (
    Contender("WebDataset, default", "webdataset", ("jpeg", "numbers"), load_webdataset, webdataset_default),
    *_forms("WebDataset, tuned", "webdataset", load_webdataset, webdataset_tuned),
    *_forms("MosaicML Streaming", "mosaicml", load_mosaicml, mosaicml),
    *_forms("LitData", "litdata", load_litdata, litdata),
)
warnings.filterwarnings("ignore", message=".*shardshuffle.*")
