"""What the samples of a tar with one sample a step mean: which episode, which step, which features. From a YAML file.

key: "ep{episode}_{step}"              # of each sample; or in fields: `episode: json.episode_index`, `step: ...`
task: txt                              # or a path in a JSON member: json.instruction
fps: 10
features:
  action: action.npy                   # one row a step
  observation.state: json.state        # a number, or lists of numbers
  observation.images.top: top.jpg      # jpg, jpeg, png, webp; or .npy of (H, W, C)
  observation.images.hand: {from: hand.jpg, jpeg_channels: bgr, rotate: 180}
"""

import re
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

import pydantic

from epistream.errors import FormatError, OptionError
from epistream.sharding.format.features import IMAGES, Channels
from epistream.yaml_text import read_yaml

# In place of a field: the tar's own name, for tars of one episode.
TAR = "tar"
_TEXTS = ("txt", "text", "cls", "id", "index")
PICTURES = ("jpg", "jpeg", "png", "webp")
_PARTS = re.compile(r"(\{[^{}]*\}|\*)")
# Of a step's number. Times in nanoseconds have 19; Python refuses to read more than 4,300.
MOST_DIGITS = 40
# The whole number: the stars beside it must not take its first digits.
_PATTERN_OF = {
    "{episode}": r"(?P<episode>.+)",
    "{step}": rf"(?P<step>(?<!\d)\d{{1,{MOST_DIGITS}}}(?!\d))",
    "*": r"[^/]*",
}


@dataclass(frozen=True)
class Origin:
    """Where a value of a step is.

    Args:
        member: Name of the field, as WebDataset divides names: ``action.npy``, ``json``.
        path: Below which keys of a JSON member, joined by dots.
    """

    member: str
    path: str = ""

    def __str__(self) -> str:
        """As `parse` reads it."""
        return f"{self.member}.{self.path}" if self.path else self.member

    @property
    def kind(self) -> str:
        """What the member is: ``npy``, ``json``, ``text``, ``picture``, or empty for what is not read."""
        suffix = self.member.rpartition(".")[2]
        if suffix in PICTURES:
            return "picture"
        return "text" if suffix in _TEXTS else suffix if suffix in ("npy", "json") else ""

    @staticmethod
    def parse(text: str) -> "Origin":
        """From ``action.npy``, or for JSON ``json.state`` and ``info.json.robot.state``."""
        names = text.split(".")
        at = next((position for position, name in enumerate(names) if name.lower() == "json"), len(names))
        return Origin(".".join(names[: at + 1]).lower(), ".".join(names[at + 1 :]))


@dataclass(frozen=True)
class StepFeature:
    """One feature: its name, where it is, and for cameras what the pictures do not say themselves."""

    name: str
    origin: Origin
    jpeg_channels: Channels = "rgb"
    rotate: Literal[0, 180] = 0

    @property
    def is_camera(self) -> bool:
        """Pictures are, and ``.npy`` members whose feature is named as one."""
        return self.origin.kind == "picture" or (self.origin.kind == "npy" and self.name.startswith(IMAGES))


@dataclass(frozen=True)
class StepMapping:
    """A whole mapping, checked.

    Args:
        features: At least one, unless they are still to be deduced.
        key: Pattern of the samples' keys, with ``{episode}``, ``{step}`` or both, and ``*``; may be empty.
        episode: Field that names the episode, or `TAR`; None if the key does.
        step: Field with the number of the step; None if the key does.
        task: Field with the instruction.
        fps: Steps per second.
        gaps: Whether step numbers only say the order, and may begin anywhere and have gaps.
    """

    features: tuple[StepFeature, ...]
    key: str = ""
    episode: Origin | None = None
    step: Origin | None = None
    task: Origin | None = None
    fps: float | None = None
    gaps: bool = False

    @staticmethod
    def of(value: object, where: str) -> "StepMapping":
        """From plain values.

        Raises:
            OptionError: If they say something that is not part of a mapping; the message begins with `where`.
        """
        known = f"Known: {', '.join(_File.model_fields)}; of a feature: from, jpeg_channels, rotate."
        if not isinstance(value, dict):
            raise OptionError(f"{where}: the file: {value!r:.60}, wanted keys and values. {known}")
        try:
            described = _File.model_validate(value)
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            found = f"{place}: {first['msg']} (found {first['input']!r:.60})" if place else first["msg"]
            raise OptionError(f"{where}: {found.removeprefix('Value error, ')}. {known}") from error
        features = {
            name: _Feature.model_validate({"from": one}) if isinstance(one, str) else one
            for name, one in described.features.items()
        }
        origins = {name: described.__dict__[name] for name in ("episode", "step", "task")}
        return StepMapping(
            tuple(
                StepFeature(name, Origin.parse(one.origin), one.jpeg_channels, one.rotate)
                for name, one in features.items()
            ),
            described.key,
            **{name: Origin.parse(text) if text else None for name, text in origins.items()},
            fps=described.fps,
            gaps=described.gaps,
        )

    def plain(self) -> dict[str, Any]:
        """The values that `of` takes, without defaults."""
        features: dict[str, Any] = {}
        for feature in self.features:
            text = str(feature.origin)
            more = {"jpeg_channels": feature.jpeg_channels, "rotate": feature.rotate}
            is_short = more == {"jpeg_channels": "rgb", "rotate": 0}
            features[feature.name] = text if is_short else {"from": text, **more}
        fields = {name: origin and str(origin) for name, origin in self._fields().items()}
        said = {"key": self.key, **fields, "fps": self.fps, "gaps": self.gaps, "features": features}
        return {name: value for name, value in said.items() if value}

    def _fields(self) -> dict[str, Origin | None]:
        return {"episode": self.episode, "step": self.step, "task": self.task}

    def key_pattern(self) -> re.Pattern[str]:
        """The key's pattern as a regular expression with the groups ``episode`` and ``step``."""
        return key_pattern(self.key)

    def members(self) -> set[str]:
        """The fields of each sample that are used."""
        used = {feature.origin.member for feature in self.features}
        return used | {origin.member for origin in self._fields().values() if origin}


def key_pattern(key: str) -> re.Pattern[str]:
    """The regular expression of a pattern, which is known to be one."""
    return re.compile("".join(_PATTERN_OF.get(part) or re.escape(part) for part in _PARTS.split(key)))


class _Feature(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    origin: str = pydantic.Field(min_length=1, alias="from")
    jpeg_channels: Channels = "rgb"
    rotate: Literal[0, 180] = 0


class _File(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    key: str = ""
    episode: str = ""
    step: str = ""
    task: str = ""
    fps: float | None = pydantic.Field(None, gt=0)
    gaps: bool = False
    features: dict[str, str | _Feature] = {}

    @pydantic.model_validator(mode="after")
    def _makes_sense(self) -> "_File":
        named = [part for part in _PARTS.split(self.key) if part.startswith("{")]
        problem = next((f"part {part} in 'key'" for part in named if part not in _PATTERN_OF), None)
        if "}{" in self.key:
            problem = "two parts in 'key' with nothing between them"
        for name in ("episode", "step"):
            said = named.count(f"{{{name}}}") + bool(getattr(self, name))
            if said != 1:
                problem = problem or f"{name} said {said} times, wanted once: {{{name}}} in 'key', or '{name}: FIELD'"
        kinds = {"episode": ("json", "text", "npy"), "step": ("json", "text", "npy"), "task": ("json", "text")}
        for name, wanted in kinds.items():
            text = getattr(self, name)
            if text and Origin.parse(text).kind not in wanted and (name, text) != ("episode", TAR):
                problem = problem or f"{name} from {text!r}, wanted one of {', '.join(wanted)} (such as json.{name})"
        for name, one in self.features.items():
            origin = Origin.parse(one if isinstance(one, str) else one.origin)
            if origin.kind not in ("npy", "json", "picture"):
                problem = problem or f"{name} from {origin.member!r}, wanted .npy, JSON, {', '.join(PICTURES)}"
            if origin.kind == "json" and not origin.path:
                problem = problem or f"{name} from all of {origin.member!r}, wanted a path in it: {origin.member}.state"
        if problem:
            raise ValueError(problem)
        return self


def read_step_mapping(path: str | PathLike[str]) -> StepMapping:
    """The mapping that a YAML file describes.

    Raises:
        OptionError: If the file cannot be read, or is no mapping.
    """
    return StepMapping.of(read_yaml(path, "a mapping of steps"), str(path))


def mapping_of_index(value: object, where: str) -> StepMapping:
    """The mapping that an index was made by.

    Raises:
        FormatError: If it is none.
    """
    try:
        return StepMapping.of(value, where)
    except OptionError as error:
        raise FormatError(str(error)) from error
