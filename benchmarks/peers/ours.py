"""epistream in the comparison: processes, threads, frames decoded once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers.contender import BATCH_SIZE, NUM_WORKERS, Batches, forever
from peers.data import Scenario


def load() -> None:
    import epistream as es

    _ = (es.EpisodeStream, es.StreamingLoader, es.CacheOptions, es.Window)


def epistream(**options: Any) -> Callable[[Scenario, Path], Batches]:
    """Our own loader with options of `EpisodeStream` (`decode`) and of `StreamingLoader` (`loader`)."""

    def start(scenario: Scenario, folder: Path) -> Batches:
        import epistream as es

        decode = options.get("decode", "per_read")
        stream = es.EpisodeStream(
            folder / "epistream",
            batch_size=BATCH_SIZE,
            window=es.Window(obs=range(1 - scenario.num_history, 1), action=range(scenario.chunk)),
            decode=decode,
        )
        loader = es.StreamingLoader(stream, **{"num_workers": NUM_WORKERS, **options.get("loader", {})})
        if decode == "once":
            # Warm: everything was decoded before, by an earlier epoch or job. An epoch visits every episode.
            for _ in loader:
                pass
        return forever(loader)

    return start
