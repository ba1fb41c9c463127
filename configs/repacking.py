"""Whether packing HDF5 files would pay: some of them are packed with the defaults, and read."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from epistream.configs.config import Config
from epistream.configs.prediction import Prediction
from epistream.configs.survey import ALL_OF_IT, Survey
from epistream.errors import EpistreamError
from epistream.loader.measuring.rates import Kind, measure_loading
from epistream.loader.stream import EpisodeStream
from epistream.sharding.layouts.layout_file import chosen_layout
from epistream.sharding.pack.pack import pack

# Packing is work and another copy of the data: only for this much more speed.
WORTH = 1.3
_PACK_BYTES = 64 << 20


@dataclass(frozen=True)
class Alternative:
    """One way to pack.

    Attributes:
        name: in words.
        dataset_bytes: of the whole dataset, about.
        prediction: with it.
        pays: whether it is worth the work.
    """

    name: str
    dataset_bytes: int
    prediction: Prediction
    pays: bool


def packed_survey(
    found: Survey, base: Config, sample: EpisodeStream, seconds: float, say: Callable[[str], None]
) -> Survey | None:
    """The survey as it would be with the HDF5 files packed by default options: some of them are, and are measured.

    None if they cannot be packed.
    """
    dataset = sample.job.dataset
    sizes = np.cumsum(dataset.shard_bytes)
    number = min(dataset.num_shards, max(1, int(np.searchsorted(sizes, _PACK_BYTES))))
    urls = list(dict.fromkeys(dataset.shard_url[index] for index in range(number)))
    tried = sum(int(size) for url, size in zip(dataset.shard_url, dataset.shard_bytes, strict=True) if url in urls)
    with tempfile.TemporaryDirectory(prefix="epistream-tune-") as folder:
        say(f"packing {len(urls)} files to compare")
        out = Path(folder) / "shards"
        try:
            pack(
                urls,
                out,
                layout=chosen_layout(base.settings.stream.layout),
                allow_outside_files=base.settings.stream.allow_outside_files,
            )
            # Shards need no layout any more.
            stream = EpisodeStream.from_config(base, str(out), **{**ALL_OF_IT, "layout": None})
        except EpistreamError:
            return None
        say("reading what was packed")
        kind: Kind = "processes"
        rate = measure_loading(stream, found.num_cores, kind, seconds)
        packed = int(stream.job.dataset.shard_bytes.sum())
        stream.job.cache.close()
    gain = rate.windows_per_s / found.together[kind].windows_per_s
    return replace(
        found,
        alone={k: replace(r, windows_per_s=r.windows_per_s * gain) for k, r in found.alone.items()},
        together={k: replace(r, windows_per_s=r.windows_per_s * gain) for k, r in found.together.items()},
        dataset_bytes=int(found.dataset_bytes * packed / tried),
    )
