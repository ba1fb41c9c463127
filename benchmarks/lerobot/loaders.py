"""The loaders of the comparison: each gives batches of the same windows of a LeRobot data set, without end.

Two states, 16 actions, every camera at the present step, batches of 32, two workers.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BATCH_SIZE = 32
NUM_WORKERS = 2
NUM_STATES, NUM_ACTIONS = 2, 16
# The default of 1,000 items would take 15 GB: 7 MB an item, in both workers. The first batch comes when it is full.
STREAMING_BUFFER = 100

# The order of a data set whose frames are too many for a pool that holds them all, with a pool for a tenth of these.
BLOCKS = {"by": "blocks", "block_steps": 2, "pool_blocks": 64}

Batches = Iterator[Any]


@dataclass(frozen=True)
class Loader:
    """One way to read the data set.

    Attributes:
        name: in the tables.
        environment: whose Python runs it: "epistream", or a LeRobot's.
        load: imports its packages, before any clock runs.
        start: opens the data set.
        warm_epochs: epochs that are read before the rate is measured, beside a few batches.
        form: what it reads: the data set itself ("lerobot"), or a copy in a layout of its own.
    """

    name: str
    environment: str
    load: Callable[[], None]
    start: Callable[[Path], Batches]
    warm_epochs: int = 0
    form: str = "lerobot"


def deltas(root: Path) -> dict[str, list[float]]:
    """The windows, as LeRobot's `delta_timestamps`."""
    fps = json.loads((root / "meta" / "info.json").read_text())["fps"]
    return {
        "observation.state": [step / fps for step in range(1 - NUM_STATES, 1)],
        "action": [step / fps for step in range(NUM_ACTIONS)],
    }


def forever(loader: Any) -> Batches:
    """Epoch after epoch."""
    while True:
        yield from loader


def load_lerobot() -> None:
    import compat

    compat.prepare()
    from lerobot.datasets import lerobot_dataset, streaming_dataset  # noqa: F401


def lerobot(root: Path) -> Batches:
    """As LeRobot's own training script makes its loader."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from torch.utils.data import DataLoader

    data = LeRobotDataset("bench/set", root=root, delta_timestamps=deltas(root))
    return forever(DataLoader(data, BATCH_SIZE, shuffle=True, num_workers=NUM_WORKERS, prefetch_factor=2))


def streaming_lerobot(root: Path) -> Batches:
    """The same for its streaming data set."""
    from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset
    from torch.utils.data import DataLoader

    data = StreamingLeRobotDataset(
        "bench/set", root=root, delta_timestamps=deltas(root), buffer_size=STREAMING_BUFFER, seed=0
    )
    return forever(DataLoader(data, BATCH_SIZE, num_workers=NUM_WORKERS, prefetch_factor=2))


def load_lance() -> None:
    load_lerobot()
    import lerobot_lancedb  # noqa: F401


def lance(root: Path) -> Batches:
    """lerobot-lancedb, as its description says."""
    from lerobot_lancedb import LanceDBDataset, lance_mp_context
    from torch.utils.data import DataLoader

    data = LanceDBDataset(root=str(root), delta_timestamps=deltas(root))
    context = lance_mp_context()
    return forever(DataLoader(data, BATCH_SIZE, shuffle=True, num_workers=NUM_WORKERS, multiprocessing_context=context))


def load_epistream() -> None:
    import epistream as es

    _ = (es.EpisodeStream, es.StreamingLoader, es.LeRobotFormat)


def epistream(images: str = "float32", *, by_blocks: bool = False, **options: Any) -> Callable[[Path], Batches]:
    """Ours on the same folder, with options of `EpisodeStream`."""

    def start(root: Path) -> Batches:
        import epistream as es

        order = {"order": es.OrderOptions(**BLOCKS)} if by_blocks else {}
        stream = es.EpisodeStream(
            str(root),
            batch_size=BATCH_SIZE,
            delta_timestamps=deltas(root),
            sample_format=es.LeRobotFormat(images=images),
            **order,
            **options,
        )
        return forever(es.StreamingLoader(stream, num_workers=NUM_WORKERS))

    return start


LOADERS = (
    Loader("LeRobotDataset", "lerobot", load_lerobot, lerobot),
    Loader("StreamingLeRobotDataset", "lerobot", load_lerobot, streaming_lerobot),
    Loader("lerobot-lancedb", "lance", load_lance, lance, form="lance"),
    Loader("epistream", "epistream", load_epistream, epistream(), warm_epochs=1),
    Loader("epistream, uint8", "epistream", load_epistream, epistream("uint8"), warm_epochs=1),
    Loader("epistream, uint8, each frame decoded", "epistream", load_epistream, epistream("uint8", decode="per_read")),
    Loader("epistream, a tenth in memory", "epistream", load_epistream, epistream(by_blocks=True), warm_epochs=1),
    Loader(
        "epistream, uint8, a tenth in memory",
        "epistream",
        load_epistream,
        epistream("uint8", by_blocks=True),
        warm_epochs=1,
    ),
    Loader(
        "epistream, uint8, decoded once", "epistream", load_epistream, epistream("uint8", decode="once"), warm_epochs=2
    ),
)


def loader_of(name: str) -> Loader:
    """By its name in the tables."""
    return next(loader for loader in LOADERS if loader.name == name)
