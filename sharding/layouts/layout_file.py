"""A layout of your own, from a YAML file.

    name: my-robot
    needs: [joint_action/vector, "observation/*/rgb"]      # paths by which a file is recognised
    fps: 30
    tasks: [instruction, "@task", "/@info[lang]"]          # where instructions are: datasets, attributes, JSON in them
    where: {"@success": true}                             # episodes for which this does not hold are left out
    features:
      - {path: "observation/*/rgb", camera: "*", jpeg_channels: bgr}
      - {path: observation/wrist, camera: wrist, transpose: chw}   # stored as (T, C, H, W)
      - {path: joint_action/vector, name: observation.state}
      - {path: joint_action/vector, name: action, shift: 1}   # the state of the next step
      - {path: force, name: observation.force, optional: true}  # may be missing; all others must be there

`episodes: data/*` says that these groups of a file are its episodes; paths are then below them.
"""

import os
from os import PathLike
from typing import Annotated, Any, Literal

import pydantic

from epistream.errors import OptionError
from epistream.sharding.format.features import IMAGES, Channels, can_be_name
from epistream.sharding.layouts.mapping import MappingLayout, Rule
from epistream.sharding.layouts.names import usable_name
from epistream.sharding.layouts.places import Place, Scalar
from epistream.sharding.layouts.registry import LAYOUTS, layout_by_name
from epistream.sharding.layouts.transposed import StoredAxes
from epistream.yaml_text import read_yaml

# More stars in a path take a time that doubles with each.
_MAX_STARS = 4


def _place(text: str) -> str:
    place = Place.parse(text)
    if place.problem:
        raise ValueError(
            f"{text!r} {place.problem}, wanted PATH, PATH@ATTRIBUTE or @ATTRIBUTE, each with [KEY] of JSON"
        )
    return text


def _pattern(text: str) -> str:
    if not text.strip("/"):
        raise ValueError("wanted a path")
    if text.replace("**", "*").count("*") > _MAX_STARS or "***" in text:
        raise ValueError(f"wanted at most {_MAX_STARS} stars in a path")
    return text.strip("/")


def _task_file(text: str) -> str:
    if set(text.replace("{stem}", "").replace("{number}", "")) & set("{}"):
        raise ValueError("wanted no braces but {stem} and {number}")
    return text


_Pattern = Annotated[str, pydantic.AfterValidator(_pattern)]
_Place = Annotated[str, pydantic.AfterValidator(_place)]


class _Feature(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    path: _Pattern
    name: str | None = pydantic.Field(None, min_length=1)
    camera: str | None = pydantic.Field(None, min_length=1)
    jpeg_channels: Channels | None = None
    rotate: Literal[0, 180] = 0
    shift: int = pydantic.Field(0, ge=0, le=1_000_000)
    transpose: StoredAxes | None = None
    optional: bool = False

    @pydantic.model_validator(mode="after")
    def _one_name(self) -> "_Feature":
        if (self.name is None) == (self.camera is None):
            raise ValueError("wanted either 'name' (of numbers) or 'camera'")
        for key in ("transpose", "jpeg_channels", "rotate"):
            if self.camera is None and getattr(self, key):
                raise ValueError(f"{key!r} with 'name', wanted it with 'camera'")
        if "*" in self.feature_name and "*" not in self.path:
            raise ValueError("a star in the name and none in the path, wanted one there, too")
        if not can_be_name(usable_name(self.feature_name.replace("*", "x"), is_camera=self.name is None)):
            raise ValueError("wanted a name of a-z, 0-9, '_', '.' and '-'")
        return self

    @property
    def feature_name(self) -> str:
        """What it becomes; with stars for what those of the path stand for."""
        return f"{IMAGES}{self.camera}" if self.name is None else self.name


class _File(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str = pydantic.Field(min_length=1)
    features: list[_Feature] = pydantic.Field(min_length=1)
    needs: list[_Pattern] | None = None
    episodes: Annotated[str, pydantic.AfterValidator(lambda text: _pattern(text) if text else text)] = ""
    tasks: list[_Place] = []
    tasks_optional: bool = False
    task_files: list[Annotated[str, pydantic.AfterValidator(_task_file)]] = []
    where: dict[_Place, Scalar | Annotated[list[Scalar], pydantic.Field(min_length=1)]] = {}
    fps: float | None = pydantic.Field(None, gt=0)


def chosen_layout(given: str | PathLike[str] | MappingLayout | None) -> str | MappingLayout | None:
    """What an option ``layout`` means: the name of a known layout, or a YAML file of your own.

    Raises:
        OptionError: If it is neither.
    """
    if given is None or isinstance(given, MappingLayout):
        return given
    if given not in {layout.name for layout in LAYOUTS} and os.path.lexists(given):
        return read_layout_file(given)
    try:
        return layout_by_name(str(given)).name
    except OptionError as error:
        raise OptionError(str(error).replace("unknown, wanted", "wanted a YAML file, or")) from error


def read_layout_file(path: str | PathLike[str]) -> MappingLayout:
    """The layout that a YAML file describes; without ``needs`` its features' paths are what a file must have.

    Raises:
        OptionError: If the file cannot be read, or says something that is not part of a layout.
    """
    return layout_of_values(read_yaml(path, "a layout"), str(path))


def layout_of_values(values: object, where: str) -> MappingLayout:
    """The layout that the values of a layout file describe.

    Raises:
        OptionError: If they are none; the message begins with `where`.
    """
    try:
        described = _File.model_validate(values)
    except pydantic.ValidationError as error:
        raise OptionError(_explain(error, where)) from error
    rules = tuple(_rule(feature) for feature in described.features)
    must = [rule.path for rule in rules if not rule.optional] or [rule.path for rule in rules]
    return MappingLayout(
        name=described.name,
        needs=tuple(described.needs if described.needs is not None else dict.fromkeys(must)),
        rules=rules,
        episodes=described.episodes,
        tasks=tuple(described.tasks),
        task_files=tuple(described.task_files),
        fps=described.fps,
        where=tuple((place, tuple(_values(wanted))) for place, wanted in described.where.items()),
        tasks_optional=described.tasks_optional,
        is_own=True,
    )


def _values(wanted: Any) -> list[Scalar]:
    return wanted if isinstance(wanted, list) else [wanted]


def _explain(error: pydantic.ValidationError, where: str) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the file"
    return (
        f"{where}: {place}: {first['msg'].removeprefix('Value error, ')} (found {first['input']!r:.60}). "
        f"Known: {', '.join(_File.model_fields)}; of a feature: {', '.join(_Feature.model_fields)}."
    )


def _rule(feature: _Feature) -> Rule:
    is_camera = feature.camera is not None
    return Rule(
        path=feature.path,
        name=feature.feature_name,
        kind="frames" if is_camera else "array",
        jpeg_channels=feature.jpeg_channels,
        rotate=feature.rotate,
        shift=feature.shift,
        transpose=feature.transpose or "",
        optional=feature.optional,
    )
