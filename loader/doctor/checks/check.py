"""What a check is, what it finds, and where."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from epistream.loader.doctor.facts.facts import Facts

Level = Literal["info", "warning", "error"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class Place:
    """Where a check found something, and what.

    Args:
        text: What was found, without the place.
        episode: Its position in the dataset; None for something that is no single episode's.
        feature: Name, where it is of one.
        dims: Dimensions of the feature, flattened, where it is of some.
        steps: Half-open range, where it is of some.
        keep: Half-open range of steps that is left when what is wrong is cut off, where that helps.
        others: Other episodes that it is about.
    """

    text: str
    episode: int | None = None
    feature: str = ""
    dims: tuple[int, ...] = ()
    steps: tuple[int, int] | None = None
    keep: tuple[int, int] | None = None
    others: tuple[int, ...] = ()


@dataclass(frozen=True)
class Check:
    """One thing that can be wrong with a dataset.

    Args:
        code: Names it for ever.
        level: How bad that is: an error spoils training; a warning may; information is worth knowing.
        sentence: What is looked for.
        advice: What to do about it.
        find: Finds it.
        needs_frames: Whether pictures have to be decoded for it.
    """

    code: str
    level: Level
    sentence: str
    advice: str
    find: Callable[[Facts], Iterable[Place]]
    needs_frames: bool = False


@dataclass(frozen=True)
class Finding:
    """What a check found, at one place.

    Args:
        code: Of the check.
        level: Of the check.
        place: Where, and what.
        advice: Of the check.
        source: The file that the episode comes from.
        path: Where in that file.
        key: What the episode is called in its shard.
    """

    code: str
    level: Level
    place: Place
    advice: str
    source: str = ""
    path: str = ""
    key: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON; what is not known is left out."""
        place = self.place
        told = {
            "code": self.code,
            "level": self.level,
            "text": place.text,
            "episode": place.episode,
            "source": self.source,
            "path": self.path,
            "key": self.key,
            "feature": place.feature,
            "dims": list(place.dims),
            "steps": place.steps and list(place.steps),
            "keep": place.keep and list(place.keep),
            "others": list(place.others),
            "advice": self.advice,
        }
        return {name: value for name, value in told.items() if value not in (None, "", [])}
