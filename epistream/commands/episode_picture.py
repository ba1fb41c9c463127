"""The picture that ``epistream inspect --image`` writes: rows of any data set, packed or not, local or remote."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from epistream.sharding.format.feature_sets import Wanted
from epistream.sharding.format.features import Feature
from epistream.sharding.format.opened_dataset import Dataset

if TYPE_CHECKING:
    from PIL import Image


def episode_picture(
    dataset: Dataset, episode: int, num_columns: int = 8, wanted: Wanted | None = None
) -> "Image.Image":
    """As `contact_sheet`, reading as a stream does but keeping nothing."""
    from epistream.cache.node import NodeCache
    from epistream.cache.options import CacheOptions
    from epistream.loader.order.window import Window
    from epistream.loader.random_access import RandomAccess
    from epistream.loader.reading.reader import ReaderOptions
    from epistream.sharding.check.contact_sheet import contact_sheet

    with ExitStack() as opened:

        def read(feature: Feature, steps: Sequence[int]) -> NDArray[Any]:
            cache = NodeCache(CacheOptions(mode="off"), dataset.storage_options)
            access = RandomAccess(dataset, {feature.name: feature}, Window(), cache, ReaderOptions())
            opened.callback(access.close)
            rows: NDArray[Any] = access.read(np.full(len(steps), episode), np.asarray(steps))[feature.name][:, 0]
            return rows

        return contact_sheet(dataset, episode, read, num_columns, wanted)
