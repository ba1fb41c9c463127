"""What one training sample reads: step offsets about an anchor, per feature."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray

from epistream.errors import OptionError
from epistream.hints import in_short
from epistream.options import check

Pad = Literal["edge", "zero"]

# As many steps as an episode may have (`EpisodeMeta.length`); no sum of two such numbers overflows.
MOST = 1 << 48


def ascending(steps: list[int]) -> list[int]:
    """The same step offsets; a ValueError unless there are some, each once, oldest first."""
    if not steps:
        raise ValueError("no step offsets, wanted at least one, for example 0:1 or [0]")
    if far := [step for step in steps if not -MOST < step < MOST]:
        raise ValueError(f"{far[0]!r:.20} reaches beyond every episode, wanted step offsets within 2**48")
    if any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"{steps[:8]} does not ascend, wanted each step offset once, oldest first")
    return steps


def _offsets(name: str, steps: Iterable[int]) -> tuple[int, ...]:
    if not isinstance(steps, Iterable):
        raise OptionError(
            f"Window.{name}: {steps!r}, wanted step offsets. A chunk of 16 is range(16), one step is [0]."
        )
    try:
        return tuple(ascending([int(step) for step in steps]))
    except (ValueError, OverflowError) as error:
        raise OptionError(f"Window.{name}: {error}.") from None


@dataclass(frozen=True)
class Window:
    """Step offsets relative to the anchor step t, and what stands where the episode does not reach.

    For an episode of 4 steps, ``Window(obs=range(-1, 1), action=range(0, 3))`` reads

    | anchor t | observations | actions | action_is_pad      |
    | -------- | ------------ | ------- | ------------------ |
    | 0        | 0* 0         | 0 1 2   | False False False  |
    | 3        | 2 3          | 3 3* 3* | False True True    |

    where ``*`` marks a padded entry (``pad="edge"`` repeats the nearest step, ``"zero"`` writes zeros).

    Args:
        obs: step offsets of observations. Of every feature but actions, ascending.
        action: step offsets of actions. Of features called ``action`` or ``action.<name>``, ascending.
        overrides: step offsets of single features. By feature name; they win over `obs` and `action`.
        pad: what stands where an episode does not reach.
        drop_incomplete: leave out anchors whose window leaves the episode.
        must_fit: [lowest, highest] offset that must lie inside the episode; all may be padded if None. Both included;
            anchors where they do not are left out, whatever else of their window is padded.

    Raises:
        OptionError: offsets that are empty, repeated or not ascending, an unknown `pad`, or a `must_fit` without 0.
    """

    obs: Iterable[int] = (0,)
    action: Iterable[int] = (0,)
    overrides: Mapping[str, Iterable[int]] = field(default_factory=dict)
    pad: Annotated[Pad, "'edge' or 'zero'"] = "edge"
    drop_incomplete: bool = False
    must_fit: Annotated[tuple[int, int], "(lowest, highest), for example (0, 15)"] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "obs", _offsets("obs", self.obs))
        object.__setattr__(self, "action", _offsets("action", self.action))
        overrides = {name: _offsets(f"overrides[{name!r}]", steps) for name, steps in self.overrides.items()}
        object.__setattr__(self, "overrides", overrides)
        if isinstance(self.must_fit, Iterable):  # an array or a range too
            object.__setattr__(self, "must_fit", tuple(self.must_fit))
        check(self, "Window.")
        if self.must_fit is not None and not -MOST < self.must_fit[0] <= 0 <= self.must_fit[1] < MOST:
            raise OptionError(f"Window.must_fit: {self.must_fit}, wanted a lowest offset up to 0 and a highest from 0.")

    def offsets(self, feature: str) -> tuple[int, ...]:
        """The ascending step offsets that `feature` is read at."""
        steps = self.overrides.get(feature)
        if steps is None:
            steps = self.action if feature == "action" or feature.startswith("action.") else self.obs
        return tuple(steps)

    def reach(self, features: Iterable[str]) -> tuple[int, int]:
        """Lowest and highest offset (both included) over `features`."""
        spans = [self.offsets(feature) for feature in features]
        return min(span[0] for span in spans), max(span[-1] for span in spans)

    def anchor_rule(self, features: Iterable[str]) -> tuple[tuple[int, int], bool]:
        """What `Anchors` takes: offsets (lowest, highest), and whether anchors are left out where these do not fit."""
        if self.must_fit is not None and not self.drop_incomplete:
            return self.must_fit, True
        return self.reach(features), self.drop_incomplete

    def steps(
        self, feature: str, anchor: NDArray[np.int64], length: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Steps to read for a batch of anchors.

        Args:
            feature: feature name.
            anchor: anchor step of each window, (B,).
            length: length in steps of each window's episode, (B,).

        Returns:
            The steps (B, n), clipped into the episode, and the mask (B, n): True where padded.
        """
        wanted = anchor[:, None] + np.asarray(self.offsets(feature), dtype=np.int64)
        inside = np.clip(wanted, 0, length[:, None] - 1)
        return inside, inside != wanted

    def __repr__(self) -> str:
        """As it is made: regular offsets as ranges, and of the rest what is no default."""
        overrides = {name: _Shown(steps) for name, steps in self.overrides.items()}
        given = {"obs": _Shown(self.obs), "action": _Shown(self.action), "overrides": overrides, "pad": self.pad}
        given |= {"drop_incomplete": self.drop_incomplete, "must_fit": self.must_fit}
        left_out = {"overrides": {}, "pad": "edge", "drop_incomplete": False, "must_fit": None}
        said = (f"{name}={value!r}" for name, value in given.items() if name not in left_out or value != left_out[name])
        return f"Window({', '.join(said)})"

    def describe(self) -> str:
        """The window in one short line, equal for equal windows."""
        spans = [("obs", self.obs), ("action", self.action), *sorted(self.overrides.items())]
        text = ", ".join(f"{name} {_span(tuple(steps))}" for name, steps in spans)
        if self.must_fit is not None:
            text += f", within [{self.must_fit[0]}..{self.must_fit[1]}]"
        return f"{text}, {self.pad}{', complete only' if self.drop_incomplete else ''}"


class _Shown:
    """Step offsets, with a `repr` of a line."""

    def __init__(self, steps: Iterable[int]) -> None:
        self._steps = tuple(steps)

    def __repr__(self) -> str:
        steps = self._steps
        if len(steps) > 2 and len({later - earlier for earlier, later in pairwise(steps)}) == 1:
            stride = steps[1] - steps[0]
            return repr(range(steps[0], steps[-1] + 1 if stride == 1 else steps[-1] + stride, stride))
        return repr(steps) if len(steps) <= 16 else in_short(steps)


def _span(steps: tuple[int, ...]) -> str:
    if len(steps) > 2 and steps == tuple(range(steps[0], steps[-1] + 1)):
        return f"[{steps[0]}..{steps[-1]}]"
    return str(list(steps))
