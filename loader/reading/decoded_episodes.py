"""Episodes whose frames were decoded once per node: made, kept in the cache beside the shards, and gathered from."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from epistream.cache.node import NodeCache
from epistream.cache.source.entry import Entry
from epistream.errors import EpistreamError, FormatError
from epistream.loader.reading.frames import FrameDecoder, Frames, draw_frames
from epistream.loader.reading.kept_arrays import KeptArrays
from epistream.loader.reading.open_shards import OpenShard
from epistream.units import size_text

logger = logging.getLogger(__name__)

# Raised whenever the bytes of an entry change their meaning: jobs of other releases share the node's cache.
_VERSION = 1
# Each open episode is a descriptor and a mapping.
_MAX_OPEN = 256


@dataclass(frozen=True)
class DecodedPlan:
    """Whether decoded episodes are kept, decided from the manifest's sizes alone.

    Attributes:
        wanted: keep them as far as they fit ("once"), or only if all fit ("auto").
        num_bytes: of all decoded episodes that the order draws from.
        source_bytes: of the shards that are open at a time, which must fit beside them.
    """

    wanted: bool
    num_bytes: int
    source_bytes: int


class DecodedEpisodes:
    """The decoded episodes that a reader draws from. Not shared between threads.

    An episode is looked up whenever a batch needs it. If nobody has made it, the reader makes it, but not more than
    one for each batch and none for its first: a batch needs frames of many episodes, and decoding all of these
    episodes at once would keep the training loop waiting. What is not there is decoded into the batch as ever, so
    the pixels are the same in any case, and the order has nothing to do with it.

    Args:
        decoders: of the cameras, by feature.
        cache: where they are kept.
        plan: sizes of the whole.
        max_open: episodes that may be held open at a time.
    """

    def __init__(
        self, decoders: Mapping[str, FrameDecoder], cache: NodeCache, plan: DecodedPlan, max_open: int
    ) -> None:
        self._decoders = dict(decoders)
        self._cache = cache
        self._plan = plan
        self._episodes: KeptArrays[tuple[int, int]] = KeptArrays(cache, min(_MAX_OPEN, max_open))
        self._is_first = True
        self._may_make = False
        self._torn: set[tuple[int, int]] = set()
        # Names are hashed into keys whenever an episode is opened: what they have in common is written once.
        self._content = json.dumps(
            [_VERSION, [[decoder.feature.to_dict(), list(decoder.shape)] for decoder in decoders.values()]]
        )

    def begin_batch(self) -> None:
        """Another batch begins."""
        self._may_make = not self._is_first
        self._is_first = False

    def take(self, opened: OpenShard, episodes: NDArray[np.int64]) -> dict[int, Frames]:
        """The decoded frames of episodes of a shard, made now where nobody has and it is time to.

        Args:
            opened: the shard.
            episodes: positions in it, of which some may be the same.

        Returns:
            By episode and camera, (T, H, W, C), read-only, until `release`; without those that are not kept.
        """
        frames = {episode: self._take_one(opened, episode) for episode in np.unique(episodes).tolist()}
        return {episode: cameras for episode, cameras in frames.items() if cameras is not None}

    def _take_one(self, opened: OpenShard, episode: int) -> Frames | None:
        key = opened.number, episode
        frames = self._episodes.get(key)
        if frames is not None or not (self._fits or self._plan.wanted):
            return frames
        length = int(opened.index.length[episode])
        shapes = {name: (np.dtype(d.feature.dtype), (length, *d.shape)) for name, d in self._decoders.items()}

        def fill(frames: Frames) -> None:
            self._may_make = False
            first, steps = int(opened.index.first_row[episode]), np.arange(length)
            for name, decoder in self._decoders.items():
                draw_frames(opened.tar, opened.index, decoder, first + steps, frames[name], steps)

        entry = Entry(opened.source.parts, f"decoded {episode} {self._content}")
        make = fill if self._may_make and key not in self._torn else None
        try:
            return self._episodes.open(key, entry, shapes, make, may_evict=self._fits)
        except FormatError as error:
            # Whoever needs the torn frame is told by its own decoding; other windows of the episode are good.
            logger.warning("Episode not kept decoded: %s", error)
            self._torn.add(key)
            return None

    def release(self) -> None:
        """Give up every episode that is held open."""
        self._episodes.release()

    @cached_property
    def _fits(self) -> bool:
        """Whether all episodes fit: asked when the first one is needed, because the budget is measured."""
        plan, needed = self._plan, self._plan.num_bytes + self._plan.source_bytes
        try:
            budget = self._cache.budget()
        except EpistreamError as error:
            logger.info("Decoded episodes are not kept: %s", error)
            return False
        fits = budget is not None and needed <= budget.bytes
        found = f"{size_text(plan.num_bytes)} of decoded episodes beside {size_text(plan.source_bytes)} of shards"
        if fits:
            logger.info("%s fit the cache's budget of %s: each is decoded once.", found, budget)
        elif plan.wanted:
            logger.warning(
                "decode='once': %s, but the cache's budget is %s. What fits is kept, the rest is decoded whenever it "
                "is read%s.",
                found,
                budget or "nothing (it is off)",
                f"; {budget.cure}, or ask for a smaller image_size" if budget else "",
            )
        else:
            logger.info("%s exceed the cache's budget of %s: frames are decoded whenever they are read.", found, budget)
        return fits
