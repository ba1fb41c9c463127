"""epistream: windows of robot-learning episodes, streamed from tar shards into torch.

Names are imported on first use, so that ``epistream pack`` and its worker processes never pay for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from epistream._version import __version__
from epistream.errors import EpistreamError

if TYPE_CHECKING:
    from epistream.cache.options import CacheOptions
    from epistream.configs.compat import DatasetOptimizer, auto_optimize_dataset, create_optimized_dataloader
    from epistream.configs.config import Config, load_config
    from epistream.loader.doctor.doctor import doctor
    from epistream.loader.episodic.dataset import OptimizedEpisodicDataset
    from epistream.loader.exporting.lerobot import export_lerobot
    from epistream.loader.loader import StreamingLoader
    from epistream.loader.mixture import Mixture
    from epistream.loader.monitoring.monitor import MonitorOptions
    from epistream.loader.options import StreamOptions
    from epistream.loader.order.options import OrderOptions
    from epistream.loader.order.window import Window
    from epistream.loader.order.world import World
    from epistream.loader.samples.action_delta import ActionDelta, delta_statistics
    from epistream.loader.samples.delta_timestamps import window_in_seconds
    from epistream.loader.samples.formats.act import ActFormat
    from epistream.loader.samples.formats.base import Padding
    from epistream.loader.samples.formats.diffusion_policy import DiffusionPolicyFormat
    from epistream.loader.samples.formats.ilstudio import IlStudioFormat
    from epistream.loader.samples.formats.lerobot import LeRobotFormat
    from epistream.loader.samples.normalize import Normalizer
    from epistream.loader.samples.window_mean import WindowMean
    from epistream.loader.stream import EpisodeStream
    from epistream.sharding.dataset import open_dataset
    from epistream.sharding.edit import functions as edit
    from epistream.sharding.manifest.opened_dataset import Dataset
    from epistream.sharding.pack.pack import pack

_HOME = {
    "ActFormat": "epistream.loader.samples.formats.act",
    "ActionDelta": "epistream.loader.samples.action_delta",
    "CacheOptions": "epistream.cache.options",
    "Config": "epistream.configs.config",
    "Dataset": "epistream.sharding.manifest.opened_dataset",
    "DatasetOptimizer": "epistream.configs.compat",
    "DiffusionPolicyFormat": "epistream.loader.samples.formats.diffusion_policy",
    "EpisodeStream": "epistream.loader.stream",
    "IlStudioFormat": "epistream.loader.samples.formats.ilstudio",
    "LeRobotFormat": "epistream.loader.samples.formats.lerobot",
    "MonitorOptions": "epistream.loader.monitoring.monitor",
    "Normalizer": "epistream.loader.samples.normalize",
    "OptimizedEpisodicDataset": "epistream.loader.episodic.dataset",
    "Mixture": "epistream.loader.mixture",
    "OrderOptions": "epistream.loader.order.options",
    "Padding": "epistream.loader.samples.formats.base",
    "StreamOptions": "epistream.loader.options",
    "StreamingLoader": "epistream.loader.loader",
    "Window": "epistream.loader.order.window",
    "WindowMean": "epistream.loader.samples.window_mean",
    "World": "epistream.loader.order.world",
    "auto_optimize_dataset": "epistream.configs.compat",
    "create_optimized_dataloader": "epistream.configs.compat",
    "delta_statistics": "epistream.loader.samples.action_delta",
    "edit": "epistream.sharding.edit.functions",
    "doctor": "epistream.loader.doctor.doctor",
    "export_lerobot": "epistream.loader.exporting.lerobot",
    "load_config": "epistream.configs.config",
    "open_dataset": "epistream.sharding.dataset",
    "pack": "epistream.sharding.pack.pack",
    "window_in_seconds": "epistream.loader.samples.delta_timestamps",
}

# Names that are modules, of functions that read best behind it: ``epistream.edit.remove(...)``.
_MODULES = frozenset({"edit"})

__all__ = [
    "ActFormat",
    "ActionDelta",
    "CacheOptions",
    "Config",
    "Dataset",
    "DatasetOptimizer",
    "DiffusionPolicyFormat",
    "EpisodeStream",
    "EpistreamError",
    "IlStudioFormat",
    "LeRobotFormat",
    "Mixture",
    "MonitorOptions",
    "Normalizer",
    "OptimizedEpisodicDataset",
    "OrderOptions",
    "Padding",
    "StreamOptions",
    "StreamingLoader",
    "Window",
    "WindowMean",
    "World",
    "__version__",
    "auto_optimize_dataset",
    "create_optimized_dataloader",
    "delta_statistics",
    "doctor",
    "edit",
    "export_lerobot",
    "load_config",
    "open_dataset",
    "pack",
    "window_in_seconds",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'epistream' has no attribute {name!r}")
    home = import_module(_HOME[name])
    value = home if name in _MODULES else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
