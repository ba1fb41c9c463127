"""The batches of diffusion_policy: observations and actions of one horizon, its first and last steps repeated."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from epistream.errors import OptionError
from epistream.loader.order.window import Window
from epistream.loader.samples.formats.base import Batch, FormatContext, Padding, SampleFormat
from epistream.loader.samples.formats.pictures import scaled
from epistream.sharding.format.features import Feature
from epistream.sharding.manifest.opened_dataset import Dataset


@dataclass(frozen=True)
class DiffusionPolicyFormat(SampleFormat):
    """``{"obs": {key: ...}, "action": ...}`` as diffusion_policy's image data sets and their loader give it.

    | key       | type                                                                  |
    | --------- | --------------------------------------------------------------------- |
    | obs/<cam> | float32 (B, To, C, H, W) in [0, 1]                                    |
    | obs/<key> | float32 (B, To, D)                                                    |
    | action    | float32 (B, horizon, A)                                               |

    Without a window of the user's it is theirs: the horizon begins at the first of the To observations, so that for
    To = 2 the actions are those of steps ``t - 1`` to ``t + horizon - 2`` about the last observation t, and the
    windows of an episode reach `To` - 1 steps before it and `num_action_steps` - 1 after it, no further.

    The keys of obs are those of the source file (``agentview_image``, ``robot0_eef_pos``, ``qpos``): the last part
    of where the feature was, or the feature's name without ``observation.`` where that is not known or not unique.

    Args:
        horizon: actions of a window.
        num_obs_steps: To, observations of a window.
        num_action_steps: actions that the policy carries out, which decides where windows end.
        action: the feature for action.
        keys: other keys of obs, by feature.
        padding: edges repeated, no mask. A mask, if named, is that of the actions.
    """

    horizon: int = 16
    num_obs_steps: int = 2
    num_action_steps: int = 8
    action: str = "action"
    keys: Mapping[str, str] = field(default_factory=dict)
    padding: Padding = field(default_factory=lambda: Padding("edge", None))

    def __post_init__(self) -> None:
        if min(self.num_obs_steps, self.num_action_steps) < 1 or (
            self.num_obs_steps - 1 + self.num_action_steps > self.horizon
        ):
            raise OptionError(
                f"DiffusionPolicyFormat: horizon {self.horizon}, num_obs_steps {self.num_obs_steps}, num_action_steps "
                f"{self.num_action_steps}, wanted both from 1 and horizon >= num_obs_steps - 1 + num_action_steps."
            )

    def select(self, available: Mapping[str, Feature]) -> list[str]:
        """Everything observed, and the action."""
        return [*(name for name in available if name.startswith("observation.")), self.action]

    def default_window(self, dataset: Dataset) -> Window:
        """`num_obs_steps` up to the anchor, and the horizon from the first of them on."""
        before = self.num_obs_steps - 1
        actions = range(-before, self.horizon - before)
        # Their sampler begins no window later than where num_action_steps - 1 of its steps are past the end.
        must_fit = (0, self.horizon - before - self.num_action_steps)
        return Window(obs=range(-before, 1), action=actions, overrides={self.action: actions}, must_fit=must_fit)

    def check(self, context: FormatContext) -> None:
        """There is the action, something is observed, and no two features get the same key."""
        if self.action not in context.features:
            raise OptionError(
                f"sample_format 'diffusion_policy': no streamed feature {self.action!r}, there are "
                f"{sorted(context.features)}. Give DiffusionPolicyFormat(action=...)."
            )
        keys = self._keys(context.features)
        twice = [key for key, count in Counter(keys.values()).items() if count > 1]
        if twice or not keys:
            raise OptionError(
                f"sample_format 'diffusion_policy': keys of obs {sorted(keys.values())}, wanted at least one, each "
                "once. Name them with DiffusionPolicyFormat(keys={feature: key})."
            )

    def __call__(self, batch: Batch, context: FormatContext) -> Batch:
        """The batch as the dict above."""
        obs = {}
        for name, key in self._keys(context.features).items():
            is_camera = context.features[name].kind == "frames"
            obs[key] = scaled(batch[name], context.recycler) if is_camera else _floats(batch[name])
        sample = {"obs": obs, "action": _floats(batch[self.action])}
        if self.padding.mask is not None:
            sample[self.padding.key("action")] = self.padding.of(batch[f"{self.action}_is_pad"])
        return sample | ({"is_repeat": batch["is_repeat"]} if "is_repeat" in batch else {})

    def _keys(self, features: Mapping[str, Feature]) -> dict[str, str]:
        """Key of obs by feature."""
        observed = [name for name in features if name.startswith("observation.")]
        recorded = {name: features[name].source_path.rsplit("/", 1)[-1] for name in observed}
        times = Counter(recorded.values())
        keys = {}
        for name in observed:
            stripped = name.removeprefix("observation.").removeprefix("images.")
            unique = recorded[name] and times[recorded[name]] == 1
            keys[name] = self.keys.get(name) or (recorded[name] if unique else stripped)
        return keys


def _floats(values: Tensor) -> Tensor:
    """As float32, but what was asked for in float64."""
    return values if values.dtype == torch.float64 else values.float()
