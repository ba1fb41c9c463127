"""Compares what the tuner predicts with what a loader then reaches.

    python benchmarks/tuner_prediction.py shards/ [more ...] --rounds 3

Every round tunes and then runs what was chosen, one after the other, so that both see the same machine; medians of
the rounds' ratios are what counts. The run is measured once its caches are warm, as the prediction is meant. On a
machine that others use, "quiet" takes out the time that workers waited for a core, as the tuner does; the ratio is
of the prediction to that.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Iterator
from typing import Any

import psutil

import epistream
from epistream.configs.config import Config, load_config
from epistream.configs.prediction import Choice, Prediction, predict
from epistream.configs.tune_options import TuneOptions
from epistream.configs.tuner import Tuning, tune


def endless(loader: epistream.StreamingLoader) -> Iterator[Any]:
    while True:
        yield from loader


def measure(config: Config, seconds: float, warm_s: float) -> tuple[float, float, int]:
    """Windows/s of a warm loader, the same without the workers' waiting for cores, and the PSS of its processes."""
    with config.loader() as loader:
        batches, began = endless(loader), time.perf_counter()
        # Every episode is decoded, and every slot touched, before the clock starts.
        passed = 0
        while time.perf_counter() - began < warm_s or passed < loader.num_batches:
            next(batches)
            passed += 1
            if time.perf_counter() - began > 60:
                break
        before, began = loader.stats(), time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            next(batches)
        stats = loader.stats().since(before)
        crowded = stats.effort.queue_s / (stats.worker_busy_s + stats.worker_idle_s)
        rate = stats.num_windows / elapsed
        return rate, rate / (1 - crowded), loader.report().memory.pss_bytes


def ways(tuning: Tuning) -> dict[str, tuple[Config, Prediction]]:
    """The choice, and others whose prediction must hold as well."""
    chosen, found = tuning.config, tuning.survey
    result = {"as chosen": (chosen, tuning.prediction)}
    for kind, number in (("threads", 1), ("threads", found.num_cores), ("processes", found.num_cores)):
        values = {key: value for key, value, origin, _ in chosen.rows() if origin != "default"}
        values |= {"loader.num_workers": 0, "loader.num_threads": 0, "stream.decode": "per_read"}
        values["loader.num_workers" if kind == "processes" else "loader.num_threads"] = number
        prediction = predict(found, Choice(kind, number, chosen.settings.loader.prefetch), 1, found.dataset_bytes)
        result[f"{number} {kind}, per read"] = load_config(**values), prediction
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--action", default="0:100")
    parser.add_argument("--json", help="write all figures here")
    arguments = parser.parse_args()
    base = load_config(batch_size=arguments.batch_size, action=arguments.action)
    figures: dict[str, list[dict[str, float]]] = {}
    for _ in range(arguments.rounds):
        for source in arguments.sources:
            tuning = tune(source, TuneOptions(seconds=arguments.seconds), base)
            for name, (config, prediction) in ways(tuning).items():
                rate, quiet, pss = measure(config, arguments.seconds, warm_s=2.0)
                figures.setdefault(f"{source}, {name}", []).append(
                    {
                        "predicted": prediction.windows_per_s,
                        "measured": rate,
                        "quiet": quiet,
                        "ratio": prediction.windows_per_s / quiet,
                        # Decoded episodes are mapped, and so in the PSS; the page cache is not.
                        "predicted_mb": (prediction.memory_bytes - prediction.cache_bytes) / 1e6,
                        "measured_mb": pss / 1e6,
                    }
                )
    print(
        f"{os.cpu_count()} cores {platform.machine()}, load {os.getloadavg()[0]:.1f}, "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, epistream {epistream.__version__}"
    )
    print(f"{'':60} {'predicted':>10} {'measured':>10} {'quiet':>8} {'ratio':>6}  spread")
    for name, rounds in figures.items():
        median = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
        ratios = [each["ratio"] for each in rounds]
        print(
            f"{name[-60:]:60} {median['predicted']:10,.0f} {median['measured']:10,.0f} {median['quiet']:8,.0f} "
            f"{median['ratio']:6.2f}  "
            f"{min(ratios):.2f}-{max(ratios):.2f}   "
            f"memory {median['predicted_mb']:,.0f} / {median['measured_mb']:,.0f} MB"
        )
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:  # noqa: PTH123
            json.dump(figures, file, indent=2)


if __name__ == "__main__":
    main()
