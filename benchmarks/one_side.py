"""Does one thing with the epistream of one side. Started by `before_after.py`, and told when by lines.

    PYTHONPATH=SITE python benchmarks/one_side.py SITE write|rate|start ARGUMENTS_AS_JSON

It prints a line when it is ready and, for each line on its standard input, does what it is for and prints a line of
JSON. Of epistream it uses public names alone, because both sides have them. It imports no more than it must: what
epistream imports by itself belongs to the time to the first batch.
"""

import json
import sys
import time
from collections.abc import Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch  # a training program has it before the clock runs

_WARM_BATCHES = 12
_KEEP_EPOCHS = 8
_SETTLE_S = 0.1  # of CPU time
_REST_S, _LOOK_S, _IDLE_CPU_S = 2.0, 0.05, 0.001

Figures = dict[str, float]


def write(scenario: str, num_steps: int, source: str, data: str) -> Iterator[Figures]:
    """Pack the windows of a scenario."""
    from dataclasses import replace

    from peers.data import SCENARIOS
    from peers.writers import prepare

    yield {}
    prepare("epistream", replace(SCENARIOS[scenario], num_steps=num_steps), Path(source), Path(data))
    yield {}


def rate(seconds: float, **options: Any) -> Iterator[Figures]:
    """The rate and the CPU time, turn after turn, of a loader that goes on as long as it is let.

    A turn lasts so many CPU seconds, so that it reads as much on a busy machine as on a quiet one.
    """
    with opened(**options) as loader:
        batches, once = chain.from_iterable(repeat(loader)), options["stream"]["decode"] == "once"
        # Some epochs, after which all frames are kept decoded.
        next(islice(batches, max(_WARM_BATCHES, _KEEP_EPOCHS * loader.num_batches if once else 0), None))
        found: Figures = {}
        while True:
            rest(loader)
            yield found
            # What lay ready is used up, and the processor's caches are this side's.
            consume(batches, loader, _SETTLE_S)
            count, elapsed, cpu = consume(batches, loader, seconds)
            found = figures(count * options["stream"]["batch_size"], elapsed, cpu)


def consume(batches: Iterator[Any], loader: Any, seconds: float) -> tuple[int, float, float]:
    """Take batches for that many CPU seconds: how many, in how long, and for how many CPU seconds it was."""
    count, cpu, began = 0, cpu_s(loader.worker_pids), time.perf_counter()
    while (used := cpu_s(loader.worker_pids) - cpu) < seconds:
        until = time.perf_counter() + seconds / 10
        while time.perf_counter() < until:
            next(batches)
            count += 1
    return count, time.perf_counter() - began, used


def rest(loader: Any) -> None:
    """Wait until the workers have filled what they may and sleep: it is the other side's turn."""
    last, deadline = -1.0, time.perf_counter() + _REST_S
    while (now := cpu_s(loader.worker_pids)) - last > _IDLE_CPU_S and time.perf_counter() < deadline:
        last = now
        time.sleep(_LOOK_S)


def start(**options: Any) -> Iterator[Figures]:
    """The time from before the import of epistream to the first batch."""
    yield {}
    cpu, began = cpu_s([]), time.perf_counter()
    with opened(**options) as loader:
        next(iter(loader))
        elapsed, cpu = time.perf_counter() - began, cpu_s(loader.worker_pids) - cpu
    yield figures(options["stream"]["batch_size"], elapsed, cpu)


def opened(dataset: str, chunk: int, stream: dict[str, Any], loader: dict[str, Any], cache: dict[str, Any]) -> Any:
    """A loader of the dataset, with these options."""
    import epistream as es

    window, options = es.Window(action=range(chunk)), es.CacheOptions(**cache)
    return es.StreamingLoader(es.EpisodeStream(dataset, window=window, cache=options, **stream), **loader)


def cpu_s(workers: list[int]) -> float:
    """CPU seconds of this process and of its workers, which all still run."""
    # The clock of another process, as clock_getcpuclockid(3) makes it: /proc counts hundredths of seconds.
    return time.process_time() + sum(time.clock_gettime(~pid << 3 | 2) for pid in workers)


def figures(num_windows: int, elapsed: float, cpu: float) -> Figures:
    """Of so many windows."""
    return {"windows_per_s": num_windows / elapsed, "cpu_s_per_1000": cpu / num_windows * 1000}


def check_loaded(site: str) -> None:
    """Refuse figures of other code than the site's.

    Raises:
        SystemExit: a module of epistream comes from elsewhere, for example from an installed one.
    """
    modules = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "epistream"}
    strangers = [str(module.__file__) for module in modules.values() if not is_in(site, module.__file__)]
    if strangers or not modules:
        raise SystemExit(f"{site}: wanted all of epistream from there, found {strangers or 'that none was loaded'}.")


def is_in(site: str, file: str | None) -> bool:
    """Whether a module's file lies in a site."""
    return file is not None and Path(file).is_relative_to(site)


def main() -> None:
    site, what, arguments = sys.argv[1:]
    torch.set_num_threads(1)
    steps = {"write": write, "rate": rate, "start": start}[what](**json.loads(arguments))
    next(steps)
    print("ready", flush=True)
    for _ in sys.stdin:
        found = next(steps)
        check_loaded(site)
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
