"""Statistics as IL-Studio's data sets give them: over all steps of all episodes, of actions as they are trained on."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from epistream.loader.samples.action_delta import DeltaKind
from epistream.sharding.format.statistics import Summary, merge_all, summarize, to_plain

_KEYS = ("mean", "std", "min", "max", "q01", "q99")


def episodic_statistics(
    episodes: Iterable[tuple[NDArray[Any], NDArray[Any]]], delta: DeltaKind | None, chunk_size: int
) -> dict[str, Any]:
    """Statistics of states and actions.

    Args:
        episodes: state (T, D) and action (T, A) of each.
        delta: what actions become.
        chunk_size: of the windows; for ``"delta_first"``, whose values depend on the place in the chunk.

    Returns:
        ``action`` and ``state``, each {mean, std, min, max, q01, q99} float32, ``num_transitions``,
        ``num_trajectories``.
    """
    num_steps = num_episodes = 0
    summaries: list[dict[str, Summary]] = []
    for state, action in episodes:
        num_steps, num_episodes = num_steps + len(action), num_episodes + 1
        summaries.append(
            {"state": summarize(state), "action": summarize(_trained_on(state, action, delta, chunk_size))}
        )
    result: dict[str, Any] = {"num_transitions": num_steps, "num_trajectories": num_episodes}
    for name, summary in merge_all(summaries).items():
        plain = to_plain(summary)
        result[name] = {key: np.asarray(plain[key], np.float32) for key in _KEYS}
    return result


def _trained_on(state: NDArray[Any], action: NDArray[Any], delta: DeltaKind | None, chunk_size: int) -> NDArray[Any]:
    if delta == "delta_step":
        return np.asarray(action - state)
    if delta == "delta_first":
        length = len(action)
        return np.concatenate([action[i:] - state[: length - i] for i in range(min(chunk_size, length))])
    return action
