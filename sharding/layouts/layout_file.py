"""A layout of your own, from a YAML file.

    name: my-robot
    needs: [joint_action/vector, "observation/*/rgb"]      # paths by which a file is recognised
    fps: 30
    tasks: [instruction]                                  # datasets that hold instructions
    features:
      - {path: "observation/*/rgb", camera: "*", jpeg_channels: bgr}
      - {path: joint_action/vector, name: observation.state}
      - {path: joint_action/vector, name: action, shift: 1}   # the state of the next step

`episodes: data/*` says that these groups of a file are its episodes; paths are then below them.
"""

from os import PathLike
from typing import Literal

import pydantic

from epistream.errors import OptionError
from epistream.plain_files import not_a_plain_file
from epistream.sharding.format.features import Channels
from epistream.sharding.layouts.mapping import MappingLayout, Rule
from epistream.sharding.layouts.registry import LAYOUTS
from epistream.yaml_text import read_yaml


class _Feature(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    path: str = pydantic.Field(min_length=1)
    name: str | None = None
    camera: str | None = None
    jpeg_channels: Channels = "rgb"
    rotate: Literal[0, 180] = 0
    shift: int = pydantic.Field(0, ge=0)

    @pydantic.model_validator(mode="after")
    def _one_name(self) -> "_Feature":
        if (self.name is None) == (self.camera is None):
            raise ValueError("wanted either 'name' (of numbers) or 'camera'")
        return self


class _File(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    name: str = pydantic.Field(min_length=1)
    features: list[_Feature] = pydantic.Field(min_length=1)
    needs: list[str] | None = None
    episodes: str = ""
    tasks: list[str] = []
    task_files: list[str] = []
    fps: float | None = pydantic.Field(None, gt=0)


def chosen_layout(given: str | PathLike[str] | MappingLayout | None) -> str | MappingLayout | None:
    """What an option ``layout`` means: the name of a known layout, or a YAML file of your own.

    Raises:
        OptionError: If it is neither.
    """
    if given is None or isinstance(given, MappingLayout):
        return given
    names = [layout.name for layout in LAYOUTS]
    if given in names:
        return str(given)
    problem = not_a_plain_file(given)
    if problem:
        raise OptionError(f"layout {str(given)!r}: {problem}, wanted a YAML file, or one of {', '.join(names)}.")
    return read_layout_file(given)


def read_layout_file(path: str | PathLike[str]) -> MappingLayout:
    """The layout that a YAML file describes; without ``needs`` its features' paths are what a file must have.

    Raises:
        OptionError: If the file cannot be read, or says something that is not part of a layout.
    """
    try:
        described = _File.model_validate(read_yaml(path, "a layout"))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise OptionError(
            f"{path}: {where}: {first['msg']} (found {first['input']!r:.60}). "
            f"Known: {', '.join(_File.model_fields)}; of a feature: {', '.join(_Feature.model_fields)}."
        ) from error
    rules = tuple(_rule(feature) for feature in described.features)
    return MappingLayout(
        name=described.name,
        needs=tuple(described.needs if described.needs is not None else dict.fromkeys(rule.path for rule in rules)),
        rules=rules,
        episodes=described.episodes,
        tasks=tuple(described.tasks),
        task_files=tuple(described.task_files),
        fps=described.fps,
    )


def _rule(feature: _Feature) -> Rule:
    is_camera = feature.camera is not None
    return Rule(
        path=feature.path,
        name=f"observation.images.{feature.camera}" if is_camera else str(feature.name),
        kind="frames" if is_camera else "array",
        jpeg_channels=feature.jpeg_channels,
        rotate=feature.rotate,
        shift=feature.shift,
    )
