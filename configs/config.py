"""A configuration, layered: defaults < preset < file < arguments; validated; it builds streams and loaders."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from epistream.access import without_secrets
from epistream.cache.options import CacheOptions
from epistream.configs.keys import NAMES, PRESET_KEY, flatten, full_name, keys, nest, unknown
from epistream.configs.presets import PRESETS, preset_values
from epistream.configs.replaced import is_replaced, layers_of
from epistream.configs.schema import Section, Settings
from epistream.errors import OptionError, SourceError
from epistream.hints import in_short
from epistream.loader.loader import StreamingLoader
from epistream.loader.monitoring.monitor import MonitorOptions
from epistream.loader.order.options import OrderOptions
from epistream.loader.order.window import Window
from epistream.loader.order.world import World
from epistream.loader.stream import EpisodeStream, Source
from epistream.loader.workers.cores import num_usable_cores
from epistream.sharding.pack.options import PackOptions
from epistream.sharding.pack.pack import pack
from epistream.shown_urls import MARK
from epistream.working_folder import absolute
from epistream.yaml_text import dump_yaml, read_yaml

_MAX_AUTO_WORKERS = 16
_MOST_SAID = 8  # values of a configuration in its repr
_OPTIONS = "stream.storage_options"


@dataclass(frozen=True)
class Config:
    """A validated configuration; made by `load_config`.

    Attributes:
        settings: the values.
        origins: where each key that is no default comes from: "preset large", the file's path or "argument".
    """

    settings: Section
    origins: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """What is no default, the most of it, without secrets; ``epistream config show`` has all."""
        said = [f"{name}={in_short(value)}" for name, value in self.said.items()]
        rest = [f"and {len(said) - _MOST_SAID} more"] if len(said) > _MOST_SAID else []
        return f"Config({', '.join(said[:_MOST_SAID] + rest)})"

    @property
    def source(self) -> str | list[str] | None:
        """What to stream, if the configuration says so."""
        source: str | list[str] | None = self.settings.source
        return source

    def stream_arguments(self) -> dict[str, Any]:
        """Keyword arguments of `EpisodeStream`, without its source."""
        stream = self.settings.stream
        values = dict(stream)
        # A sample format has a window of its own, which holds unless somebody says otherwise.
        has_window = any(key.startswith("stream.window.") for key in self.origins)
        values["window"] = Window(**dict(stream.window)) if has_window else None
        values["image_size"] = tuple(stream.image_size) if stream.image_size else None
        values["order"] = OrderOptions(**dict(self.settings.order), shuffle=stream.shuffle, seed=stream.seed)
        values["cache"] = CacheOptions(**dict(self.settings.cache))
        return values

    def loader_arguments(self, world: World | None = None) -> dict[str, Any]:
        """Keyword arguments of `StreamingLoader`, without its stream. `world` shares the cores out."""
        values: dict[str, Any] = self.settings.loader.model_dump()
        if values["num_workers"] == "auto" and values["num_threads"]:
            values["num_workers"] = 0
        elif values["num_workers"] == "auto":
            ranks = (world or World.detect()).all_processes.local_size
            values["num_workers"] = max(1, min(_MAX_AUTO_WORKERS, num_usable_cores() // ranks))
        values["monitor"] = MonitorOptions(**self.settings.monitor.model_dump())
        return values

    def pack_arguments(self) -> dict[str, Any]:
        """Options of `pack`."""
        return dict(self.settings.pack)

    def stream(self, source: Source | None = None, world: World | None = None) -> EpisodeStream:
        """The stream that this describes. `source` replaces the configuration's own."""
        return EpisodeStream.from_config(self, source, world=world)

    def loader(self, source: Source | None = None, world: World | None = None) -> StreamingLoader:
        """The stream that this describes, in a loader."""
        return StreamingLoader.from_config(self, source, world=world)

    def pack(self, sources: Any, out: Any, **options: Any) -> Any:
        """Pack HDF5 episodes as the section ``pack`` says; other options as `epistream.pack` takes them."""
        return pack(sources, out, **{**self.pack_arguments(), **options})

    @property
    def values(self) -> dict[str, Any]:
        """Plain values by key, in the order of the schema. What opens URLs is left out, and values of options are ***.

        Those are for people and for logs; ``settings`` has them as they are.
        """
        return {name: _shown(name, value) for name, value in flatten(self.settings.model_dump(mode="json"))}

    @property
    def said(self) -> dict[str, Any]:
        """Those that are no defaults."""
        return {name: value for name, value in self.values.items() if name in self.origins}

    @property
    def given(self) -> dict[str, Any]:
        """As `said`, with everything as it was given: for `load_config`, never to be shown."""
        plain = dict(flatten(self.settings.model_dump(mode="json")))
        return {name: value for name, value in plain.items() if name in self.origins}

    def rows(self) -> list[tuple[str, Any, str, str]]:
        """(key, value, where it comes from, what it means) of every key."""
        values, origins = self.values, self.origins
        return [(name, values[name], origins.get(name, "default"), info.description or "") for name, info in keys()]

    def to_yaml(self, everything: bool = False) -> str:
        """YAML that `load_config` reads back to the same values; only what somebody said, or `everything`.

        But for what must not be in files: queries, users and passwords of URLs, and ``storage_options``.
        """
        values = self.values if everything else self.said
        return dump_yaml(nest({name: value for name, value in values.items() if name != _OPTIONS or not value}))


def _shown(name: str, value: Any) -> Any:
    """A value as people may see it."""
    if name == _OPTIONS:
        return _masked(value)
    if name == "source" and value is not None:
        return without_secrets(value) if isinstance(value, str) else [without_secrets(url) for url in value]
    return value


def _masked(value: Any) -> Any:
    return {key: _masked(item) for key, item in value.items()} if isinstance(value, dict) else MARK


def load_config(file: str | Path | None = None, *, preset: str | None = None, **changes: Any) -> Config:
    """Layer a configuration: defaults < preset < file < arguments.

    Args:
        file: a YAML file; its key ``preset`` names the preset that it changes. A preset's name is taken as well, and
            the ``optimization_config.yaml`` of IL-Studio: the log says what became of each of its keys.
        preset: small, medium, large or xlarge; wins over the file's.
        changes: single keys (``batch_size=8``) or sections (``cache={"mode": "shm"}``).

    Raises:
        OptionError: an unknown key (the nearest known one is named), a value outside its range, or a file that is no
            YAML within the bounds of `read_yaml`.
        SourceError: there is no such file.
    """
    if isinstance(file, str) and file in PRESETS:
        if preset not in (None, file):
            raise OptionError(f"preset: {file!r} and {preset!r}, wanted one of them.")
        file, preset = None, file
    in_file = _read(Path(file)) if file is not None else {}
    named = in_file.pop(PRESET_KEY, None)
    preset = preset or named
    if preset is not None and preset not in PRESETS:
        raise OptionError(f"preset: {preset!r}, wanted one of {', '.join(PRESETS)}.")
    layers = layers_of(str(file), in_file, preset) if is_replaced(in_file) else [(str(file), in_file)]
    if preset is not None:
        layers.insert(0, (f"preset {preset}", preset_values(preset)))
    return _layered([*layers, ("argument", changes)])


def _read(path: Path) -> dict[str, Any]:
    absolute(path)  # where that cannot be told, nothing is found either
    if not os.path.lexists(path):  # Path.exists raises for names that cannot be
        raise SourceError(
            f"{path}: no such file, wanted a YAML configuration or one of the presets {', '.join(PRESETS)}. "
            "Make one with 'epistream tune SOURCE --output FILE'."
        )
    values = read_yaml(path, "a configuration")
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise OptionError(f"{path}: {type(values).__name__}, wanted keys and values, for example 'stream:'.")
    return values


def _layered(layers: Sequence[tuple[str, Mapping[str, Any]]]) -> Config:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for where, layer in layers:
        for given, value in flatten(_opened(layer)):
            name = full_name(given)
            # A key by its last part alone is a convenience of arguments; in files it would hide typing errors.
            if name is None or (where != "argument" and name != given):
                raise OptionError(f"{where}: {unknown(given, value)}")
            values[name], origins[name] = value, where
    try:
        config = Config(Settings(**nest(values)), origins)
    except ValidationError as error:
        raise OptionError(_explain(error, origins)) from error
    _check_together(config)
    return config


def _opened(layer: Mapping[str, Any]) -> dict[str, Any]:
    """A layer with options objects as mappings, and with ``window`` where it belongs."""
    opened = {key: asdict(value) if isinstance(value, Window | CacheOptions) else value for key, value in layer.items()}
    if "window" in opened and "stream" not in opened:
        opened["stream"] = {"window": opened.pop("window")}
    return opened


def _explain(error: ValidationError, origins: Mapping[str, str]) -> str:
    """The first thing that is wrong: where, found, wanted."""
    first = error.errors()[0]
    parts = [str(part) for part in first["loc"]]
    name = next((".".join(parts[:n]) for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in NAMES), parts[0])
    info = dict(keys()).get(name)
    said = first["msg"].removeprefix("Value error, ").removeprefix("size: ").rstrip(".")
    wanted = said.replace("Input should be", "wanted")
    is_secret = name == _OPTIONS  # whatever was given in their place may be one
    found = "" if first["type"] == "value_error" or is_secret else f"{first['input']!r:.80}, "
    meaning = f": {info.description}" if info is not None else ""
    return f"{origins.get(name, 'configuration')}: {name}: {found}{wanted}{meaning}. See 'epistream config show'."


def _check_together(config: Config) -> None:
    """What only shows when values meet: by building what they are for."""
    config.stream_arguments()
    loader = config.settings.loader
    if loader.num_threads and loader.num_workers not in (0, "auto"):
        raise OptionError(
            f"loader.num_threads: {loader.num_threads} with num_workers {loader.num_workers}, wanted one of them. "
            "Threads serve where num_workers is 0."
        )
    PackOptions(**config.pack_arguments())
