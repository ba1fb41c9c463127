"""The keys of IL-Studio's ``optimization_config.yaml``: where each one went, and such a file read with today's keys.

Source: the sections that its documentation shows, and those of the file that was published with it.
"""

import logging
import math
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from reprlib import repr as short
from typing import Any

from epistream.configs.presets import PRESETS
from epistream.errors import OptionError
from epistream.hints import did_you_mean
from epistream.units import exact_size, parse_size

_log = logging.getLogger(__name__)

_TODAY = frozenset({"source", "stream", "order", "cache", "loader", "monitor", "pack"})
# YAML 1.1, by which the old files were read, has these words for true and false.
_WORDS = {"yes": True, "on": True, "true": True, "no": False, "off": False, "false": False}


@dataclass(frozen=True)
class _Refused:
    """What a value is when it asks for something that is not to be had here."""

    why: str


@dataclass(frozen=True)
class _Old:
    """Where a key went.

    Attributes:
        new: the key of today; "" if there is none.
        why: what stands in its place where nothing is to be set.
        convert: the old value as the new one; None leaves the default. Raises ValueError with what is wanted.
    """

    new: str = ""
    why: str = ""
    convert: Callable[[Any], Any] = lambda value: value

    @property
    def whereabouts(self) -> str:
        """Half a sentence behind the old key's name."""
        return f"is {self.new} now{self._aside}" if self.new else f"needs no key any more: {self.why}"

    @property
    def nothing(self) -> str:
        """What is said where a value needs no key."""
        return f"{self.new} keeps its default{self._aside}" if self.new else f"nothing to set: {self.why}"

    @property
    def _aside(self) -> str:
        return f" ({self.why})" if self.why else ""


def _choice(true: Any = None, false: Any = None) -> Callable[[Any], Any]:
    """What true and false become."""

    def convert(value: Any) -> Any:
        said = _WORDS.get(value.lower()) if isinstance(value, str) else value
        if not isinstance(said, bool):
            raise ValueError("true or false")
        return true if said else false

    return convert


def _entries(value: Any) -> Any:
    """A number of entries, which says nothing about bytes, or a size."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return None
    if isinstance(value, str) and not value.strip().isdigit():
        return _size(value, "a number of entries, or a size such as 2GB")
    raise ValueError("a number of entries, or a size such as 2GB")


def _gibibytes(value: Any) -> Any:
    """A number of GB, which were powers of 1024 there, or a size."""
    wanted = "a number of GB above 0, or a size such as 16GB"
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return _size(value, wanted)
    num_bytes = number * (1 << 30)
    if not 0 < num_bytes < math.inf:
        raise ValueError(wanted)
    return exact_size(int(num_bytes))


def _timeout(value: Any) -> Any:
    return None if value == 0 and value is not False else value


def _size(value: Any, wanted: str) -> Any:
    try:
        parse_size(value)
    except OptionError:
        raise ValueError(wanted) from None
    return value


def _nothing(value: Any) -> None:
    """Whatever it said."""


def _gone(why: str, convert: Callable[[Any], Any] = _nothing) -> _Old:
    return _Old("", why, convert)


_BUDGET = "cache.budget_bytes"
_ITEMS = "bytes for all processes of a node together, not a number of items for each"
_SAVES = "no file is written by itself; loader.report().to_json() is what to save"
_EVICTS = f"the cache keeps to {_BUDGET} by itself"
_OLD_CLASS = _Refused("the class without optimisation is not here. Leave the key out, or use cache.mode: off")
_NO_SAMPLER = _Refused(
    "every rank would get every window, and no key says so. Leave it out, or make the stream with world=World()"
)
_KEYS: dict[str, _Old] = {
    "optimization.enabled": _gone("there is nothing to switch on", _choice(false=_OLD_CLASS)),
    "memory_mapping.enabled": _gone("files on local disks are read in place, one copy for all processes", _choice()),
    "memory_mapping.cache_size": _Old(_BUDGET, _ITEMS, _entries),
    "shared_memory.enabled": _Old("cache.mode", "", _choice(true="auto", false="off")),
    "shared_memory.preload_critical_data": _gone("lengths and indexes are there when a stream is made", _choice()),
    "loading_strategy.full_preload": _gone(f"each shard is fetched once and kept within {_BUDGET}", _choice()),
    "loading_strategy.preload_priority": _gone("lengths, instructions and indexes are there when a stream is made"),
    "cache_strategy.lru_cache_size": _Old(_BUDGET, _ITEMS, _entries),
    "cache_strategy.compress_images": _Old(
        "stream.decode", "per_read keeps pictures as they are packed", _choice(true="per_read")
    ),
    "cache_strategy.cleanup_frequency": _gone(_EVICTS),
    "dataloader.batch_size": _Old("stream.batch_size"),
    "dataloader.shuffle": _Old("stream.shuffle", "", _choice(true=True, false=False)),
    "dataloader.seed": _Old("stream.seed"),
    "dataloader.drop_last": _Old("stream.remainder", "", _choice(true="drop", false="pad")),
    "dataloader.num_workers": _Old("loader.num_workers"),
    "dataloader.prefetch_factor": _Old("loader.prefetch"),
    "dataloader.timeout": _Old("loader.timeout_s", "0 waited for ever", _timeout),
    "dataloader.multiprocessing_context": _Old("loader.start_method"),
    "dataloader.pin_memory": _gone("loader.device moves batches ahead, from page-locked memory", _choice()),
    "dataloader.persistent_workers": _gone("workers stay until loader.close()", _choice()),
    "distributed.use_distributed_sampler": _gone("ranks are found by themselves", _choice(false=_NO_SAMPLER)),
    "distributed.backend": _gone("the training script's init_process_group says it"),
    "memory_management.memory_limit": _Old(_BUDGET, "in bytes, or as text such as 16GiB", _gibibytes),
    "memory_management.monitor_interval": _Old("monitor.log_every_s"),
    "memory_management.auto_gc": _gone(_EVICTS, _choice()),
    "memory_management.gc_interval": _gone(_EVICTS),
    "monitoring.enabled": _gone("loader.print_performance_report() shows what is always counted", _choice()),
    "monitoring.metrics": _gone("everything is counted; monitor.metrics_port serves it"),
    "monitoring.log_level": _gone("the training script's logging says it"),
    "monitoring.save_report": _gone(_SAVES, _choice()),
    "monitoring.report_path": _gone(_SAVES),
}
# Arguments of the old class, by which its keys are also known, and sections that are only switched on or off.
_ALIASES = {
    "use_shared_memory": "shared_memory.enabled",
    "memory_map_cache_size": "memory_mapping.cache_size",
    "preload_critical_data": "shared_memory.preload_critical_data",
    "enable_monitoring": "monitoring.enabled",
    "monitoring.enable_monitoring": "monitoring.enabled",
    **{section: f"{section}.enabled" for section in ("optimization", "memory_mapping", "shared_memory", "monitoring")},
}
_SECTIONS = frozenset(name.partition(".")[0] for name in _KEYS)
_BY_LAST = {name.rpartition(".")[2]: name for name in _KEYS if not name.endswith(".enabled")}
# The section that `DatasetOptimizer.optimize` adds to the old ones: a configuration of today.
_OURS = "epistream"


def is_replaced(values: Mapping[str, Any]) -> bool:
    """Whether a file's values are those of the old system: some of its sections, and none of today's."""
    return not _TODAY & values.keys() and any(
        name in _SECTIONS or name in _ALIASES or name == "presets" or (name in PRESETS and isinstance(value, Mapping))
        for name, value in values.items()
    )


def whereabouts(name: str, value: Any) -> str:
    """What to say about a key of the old system where it has no business; "" if it is none of those.

    Args:
        name: with dots, also in a section of today (``loader.pin_memory``).
        value: what it was given; of a section, the keys in it are told of.
    """
    told = []
    for given, _ in _leaves(value, name):
        last = given.rpartition(".")[2]
        old = _find(given) or _BY_LAST.get(last)
        # A key of the same name today is only in the wrong place.
        if old is not None and (_find(given) or _KEYS[old].new.rpartition(".")[2] != last):
            told.append(f"{given} {_KEYS[old].whereabouts}")
    if not told:
        return ""
    return f"of the system that this one replaces: {'; '.join(told)}. A file of such keys alone is read as it is."


def layers_of(file: str, values: Mapping[str, Any], preset: str | None) -> list[tuple[str, dict[str, Any]]]:
    """A file of the old system as layers of today's keys; says in the log what became of each of its keys.

    Args:
        file: its path.
        values: what it says.
        preset: which of the file's own presets changes the rest of it, as it did there; none if None.

    Returns:
        (where it is from, values by dotted name) of each key that says something today.

    Raises:
        OptionError: a key that nobody knows, a value that cannot be, or two keys that contradict each other.
    """
    said = _said(file, values, preset)
    is_quiet = str(said.get("monitoring.enabled", ("", True))[1]).lower() in ("false", "no", "off")
    by_key: dict[str, tuple[str, Any]] = {}
    lines = []
    for name, (written, value) in said.items():
        row, where = _KEYS[name], f"{file}: {written}"
        try:
            converted = row.convert(value)
        except ValueError as error:
            raise OptionError(f"{where}: {short(value)}, wanted {error}.") from None
        if isinstance(converted, _Refused):
            raise OptionError(f"{where}: {short(value)}, but {converted.why}.")
        if row.new == "monitor.log_every_s" and is_quiet:
            converted = None
        if converted is None:
            lines.append(f"{written}: {short(value)} -> {row.nothing}")
            continue
        lines.append(f"{written}: {short(value)} -> {row.new}: {short(converted)}")
        other, before = by_key.setdefault(row.new, (where, converted))
        if before != converted:
            raise OptionError(
                f"{where}: {short(value)}, which is {row.new} now, but so is {other.removeprefix(f'{file}: ')}, with "
                "another value. Leave one of them."
            )
    _log.warning(
        "%s: keys of the system that this one replaces, read as\n  %s\nWritten anew: epistream config show %s --yaml",
        file,
        "\n  ".join(lines),
        shlex.quote(str(file)) if preset is None else f"{shlex.quote(str(file))} --preset {preset}",
    )
    layers = [(where, {key: value}) for key, (where, value) in by_key.items()]
    # An `optimize` that was saved as a file has both; what it chose for streams wins.
    return [*layers, (f"{file}: {_OURS}", values[_OURS])] if _has_ours(values) else layers


def _has_ours(values: Mapping[str, Any]) -> bool:
    return isinstance(values.get(_OURS), Mapping)


def _said(file: str, values: Mapping[str, Any], preset: str | None) -> dict[str, tuple[str, Any]]:
    """(as it is written, value) of each old key that says something, the file's preset over the rest."""
    elsewhere = {"presets", *PRESETS, *([_OURS] if _has_ours(values) else [])}
    said = _known(file, "", {name: value for name, value in values.items() if name not in elsewhere})
    presets = values.get("presets") or {}
    if not isinstance(presets, Mapping) or not presets.keys() <= set(PRESETS):
        raise OptionError(f"{file}: presets: {short(presets)}, wanted keys and values of {', '.join(PRESETS)}.")
    own = {f"presets.{name}": value for name, value in presets.items()}
    own |= {name: values[name] for name in PRESETS if name in values}
    for name, value in own.items():
        if not isinstance(value or {}, Mapping):
            raise OptionError(f"{file}: {name}: {short(value)}, wanted keys and values.")
        # Those that nobody chose are read as well: mistakes in them are told at once.
        changes = _known(file, f"{name}.", value or {})
        said |= changes if name.removeprefix("presets.") == preset else {}
    return said


def _known(file: str, prefix: str, values: Mapping[str, Any]) -> dict[str, tuple[str, Any]]:
    """(as it is written, value) by old key of what is not null; all of it must be known."""
    known: dict[str, tuple[str, Any]] = {}
    for written, value in _leaves(values):
        name, where = _find(written) or _BY_LAST.get(written), f"{file}: {prefix}{written}"
        if name is None:
            section = written.removeprefix("optimization.")
            inside = [old.partition(".")[2] for old in _KEYS if old.startswith(f"{section}.")]
            if inside:
                raise OptionError(f"{where}: {short(value)}, wanted a mapping with some of {', '.join(inside)}.")
            sections = f"Known sections: {', '.join(sorted(_SECTIONS))}, presets."
            hint = did_you_mean(written, [*_KEYS, *_ALIASES, "presets"], sections)
            raise OptionError(f"{where}: no such key. {hint}")
        other, before = known.get(name, ("", None))
        if value is not None and before not in (None, value):
            raise OptionError(f"{where}: {short(value)}, but {other} says {short(before)}. Leave one of them.")
        if value is not None:
            known[name] = (f"{prefix}{written}", value)
    return known


def _leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of what is no section; of a section that says nothing, nothing."""
    if not isinstance(values, Mapping):
        yield prefix, values
        return
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else f"{key}"
        if name.removeprefix("optimization.") not in _SECTIONS:
            yield name, value
        elif value is not None:
            yield from _leaves(value, name)


def _find(name: str) -> str | None:
    """The old key of this name: in full, within ``optimization``, or as an argument of the old class."""
    for one in (name, name.removeprefix("optimization.")):
        if one in _KEYS:
            return one
        if one in _ALIASES:
            return _ALIASES[one]
    return None
