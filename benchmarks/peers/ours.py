"""epistream in the comparison: processes, threads, frames decoded once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers.contender import BATCH_SIZE, NUM_WORKERS, Batches, forever
from peers.data import Scenario

# An earlier epoch or job has decoded everything: at most so long.
_KEEP_S = 300.0


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
        return _kept(loader) if decode == "once" else forever(loader)

    return start


def _kept(loader: Any) -> Batches:
    """Batches of a loader: the first as it comes to a user, the others once all is kept that there is room for."""
    from epistream.loader.measuring.rates import keep_decoded

    yield next(iter(loader))
    keep_decoded(loader, _KEEP_S)
    yield from forever(loader)
