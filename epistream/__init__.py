"""epistream: windows of robot-learning episodes, streamed from tar shards into torch.

Names are imported on first use, so that ``epistream pack`` and its worker processes never pay for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from epistream._version import __version__
from epistream.errors import EpistreamError

if TYPE_CHECKING:
    from epistream.cache.options import CacheOptions
    from epistream.configs.config import Config, load_config
    from epistream.loader.loader import StreamingLoader
    from epistream.loader.monitor import MonitorOptions
    from epistream.loader.plan import OrderOptions
    from epistream.loader.stream import EpisodeStream
    from epistream.loader.window import Window
    from epistream.loader.world import World
    from epistream.sharding.dataset import Dataset, open_dataset
    from epistream.sharding.pack import pack

_HOME = {
    "CacheOptions": "epistream.cache.options",
    "Config": "epistream.configs.config",
    "Dataset": "epistream.sharding.dataset",
    "EpisodeStream": "epistream.loader.stream",
    "MonitorOptions": "epistream.loader.monitor",
    "OrderOptions": "epistream.loader.plan",
    "StreamingLoader": "epistream.loader.loader",
    "Window": "epistream.loader.window",
    "World": "epistream.loader.world",
    "load_config": "epistream.configs.config",
    "open_dataset": "epistream.sharding.dataset",
    "pack": "epistream.sharding.pack",
}

__all__ = [
    "CacheOptions",
    "Config",
    "Dataset",
    "EpisodeStream",
    "EpistreamError",
    "MonitorOptions",
    "OrderOptions",
    "StreamingLoader",
    "Window",
    "World",
    "__version__",
    "load_config",
    "open_dataset",
    "pack",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'epistream' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
