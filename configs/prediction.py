"""Predicts windows/s and memory of a configuration from what was measured: arithmetic, nothing is run."""

from dataclasses import dataclass

from epistream.configs.survey import Survey
from epistream.loader.measuring.rates import Kind, LoadRate
from epistream.loader.workers.slots import most_together
from epistream.units import size_text


@dataclass(frozen=True)
class Choice:
    """How a loader runs on each rank."""

    kind: Kind
    number: int
    prefetch: int


@dataclass(frozen=True)
class Prediction:
    """Of one node.

    Attributes:
        windows_per_s: of all ranks together, once the caches are warm.
        limit: which term that is: "reading", "cores", "hand-over" or "fetching".
        first_epoch_windows_per_s: while shards still have to be fetched.
        ring_bytes: batches of all ranks.
        process_bytes: ranks and workers beside them.
        cache_bytes: shared memory, or page cache, that the shards take.
        decoded_bytes: shared memory that decoded frames take.
    """

    windows_per_s: float
    limit: str
    first_epoch_windows_per_s: float
    ring_bytes: int
    process_bytes: int
    cache_bytes: int
    decoded_bytes: int = 0

    @property
    def memory_bytes(self) -> int:
        """All of it."""
        return self.ring_bytes + self.process_bytes + self.cache_bytes + self.decoded_bytes

    @property
    def memory_text(self) -> str:
        """`memory_bytes`, and what it is made of."""
        return (
            f"{size_text(self.memory_bytes)}: processes {size_text(self.process_bytes)}, "
            f"batches {size_text(self.ring_bytes)}, shards {size_text(self.cache_bytes)}, "
            f"decoded frames {size_text(self.decoded_bytes)}"
        )


def predict(found: Survey, choice: Choice, ranks: int, cache_bytes: int) -> Prediction:
    """The rate and memory of one node.

    Args:
        found: what was measured.
        choice: how each rank's loader runs.
        ranks: of the node.
        cache_bytes: what the node's cache, or the page cache, may hold.
    """
    terms = _terms(found, choice, ranks)
    fetching = found.fetch_bytes_per_s / found.window_bytes
    first = min(*terms.values(), fetching)
    if found.dataset_bytes > cache_bytes:
        # Shards leave before the next epoch needs them.
        terms["fetching"] = fetching
    limit = min(terms, key=lambda name: terms[name])
    workers = choice.number * ranks if choice.kind == "processes" else 0
    return Prediction(
        windows_per_s=terms[limit],
        limit=limit,
        first_epoch_windows_per_s=first,
        ring_bytes=ring_bytes(found, choice, ranks),
        process_bytes=ranks * found.main_bytes + workers * found.together["processes"].worker_bytes,
        cache_bytes=min(found.dataset_bytes, cache_bytes),
    )


def ring_bytes(found: Survey, choice: Choice, ranks: int) -> int:
    """Bytes of the batches of all ranks of a node; small ones share slots, more of them on one node than on several."""
    num_batches = found.num_windows // (found.batch_size * ranks)
    together = most_together(found.batch_bytes, num_batches, choice.number)
    return ranks * choice.number * (choice.prefetch + 2) * together * found.batch_bytes


def _terms(found: Survey, choice: Choice, ranks: int) -> dict[str, float]:
    """Windows per second of each thing that can limit a node."""
    total = ranks * choice.number
    processes = _scaled(found.alone["processes"], found.together["processes"], total)
    if choice.kind == "processes":
        reading = processes
    else:
        reading = ranks * _scaled(found.alone["threads"], found.together["threads"], choice.number)
        if ranks > 1:
            reading = min(reading, processes)
    # Workers that have a core each are limited by what they do, more of them by the cores.
    name = "cores" if total >= found.num_cores else "reading"
    return {name: reading / found.more_frames, "hand-over": ranks * found.batch_size / found.finish_s}


def _scaled(alone: LoadRate, together: LoadRate, number: int) -> float:
    """The rate of `number` workers, between that of one and that of as many as there are cores."""
    if number >= together.number:
        return together.windows_per_s
    if number <= 1:
        return alone.windows_per_s
    last = together.windows_per_s / together.number / alone.windows_per_s
    efficiency = 1 + (last - 1) * (number - 1) / (together.number - 1)
    return alone.windows_per_s * number * efficiency
