"""What records of episodes cost, and how true quantiles of any choice of them are: prints a table.

python benchmarks/episode_records.py [--episodes 1000 10000] [--dims 28]

Episodes of 100 to 400 steps that differ in scale and place, half of the dimensions in each of two features. Seconds are
CPU seconds of one process, the best of three; ranks are compared with those of all values.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from epistream.sharding.format.episode_meta import EpisodeMeta
from epistream.sharding.format.features import Feature
from epistream.sharding.format.statistics import QUANTILES, summarize
from epistream.sharding.manifest.episode_records import EpisodeRecords
from epistream.sharding.manifest.record_making import RecordRules, count_episode
from epistream.sharding.manifest.record_statistics import statistics_of

NAMES = ("observation.state", "action")


def best_of_3(work: Callable[[], Any]) -> float:
    """CPU seconds."""
    found = []
    for _ in range(3):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return min(found)


def episodes_of(count: int, num_dims: int) -> list[dict[str, np.ndarray]]:
    """Values of `count` episodes by feature."""
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        length, shape = int(random.integers(100, 400)), num_dims // 2
        walks = (random.normal(size=(length, shape)) * random.uniform(0.2, 2, shape) for _ in NAMES)
        made.append(
            {
                name: (walk + 3 * random.normal(size=shape)).astype(np.float32)
                for name, walk in zip(NAMES, walks, strict=True)
            }
        )
    return made


def error_of(episodes: list[dict[str, np.ndarray]], found: dict[str, dict[str, Any]]) -> float:
    """The largest distance of any quantile from its rank among all values."""
    worst = 0.0
    for name in NAMES:
        values = np.concatenate([one[name] for one in episodes])
        for key, rank in QUANTILES.items():
            is_below = values < np.asarray(found[name][key], np.float32)
            worst = max(worst, float(np.abs(is_below.mean(axis=0) - rank).max()))
    return worst


def measured(count: int, num_dims: int) -> str:
    """A line of the table."""
    episodes = episodes_of(count, num_dims)
    features = {name: Feature(name, "array", "float32", (num_dims // 2,), "npy") for name in NAMES}
    rules = RecordRules.of(features, count)
    metas = [EpisodeMeta(len(one[NAMES[0]]), attributes={"success": True}) for one in episodes]
    few = range(min(count, 1000))
    sums = best_of_3(lambda: [{name: summarize(v) for name, v in episodes[i].items()} for i in few]) / len(few)
    make = best_of_3(lambda: [count_episode(episodes[i], metas[i], rules) for i in few]) / len(few)
    made = [count_episode(one, meta, rules).records for one, meta in zip(episodes, metas, strict=True)]
    data = EpisodeRecords.join(made).to_bytes()
    records = EpisodeRecords.parse(data, "episodes")
    most = np.arange(count) % 10 != 0
    some = np.random.default_rng(1).choice(count, 100, replace=False)
    return (
        f"{count:>9,} {rules.num_points:>7,} {len(data) / 1e6:>8.1f} {make * 1e3:>8.2f} {make / sums:>8.2f} "
        f"{best_of_3(lambda: EpisodeRecords.parse(data, 'episodes')) * 1e3:>8.1f} "
        f"{best_of_3(lambda: statistics_of(records)) * 1e3:>7.0f} "
        f"{best_of_3(lambda: statistics_of(records, most)) * 1e3:>8.0f} "
        f"{error_of(episodes, statistics_of(records).statistics):>8.3%} "
        f"{error_of([episodes[i] for i in some], statistics_of(records, some).statistics):>8.3%}"
    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--dims", type=int, default=28)
    options = parser.parse_args()
    print(
        f"{'episodes':>9} {'points':>7} {'file MB':>8} {'make ms':>8} {'of sums':>8} {'open ms':>8} {'all ms':>7} ",
        end="",
    )
    print(f"{'9 of 10':>8} {'off by':>8} {'of 100':>8}")
    for count in options.episodes:
        print(measured(count, options.dims), flush=True)


if __name__ == "__main__":
    main()
