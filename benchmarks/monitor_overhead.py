"""What watching costs: CPU of the counters for each batch, as a share of the CPU that the batch takes.

    python benchmarks/monitor_overhead.py shards/

CPU seconds, because they are the same on a busy machine. Counted: the reading of the thread's time in the
worker, the recorder and the monitor's tick in the training process, and the larger message in between.
"""

import argparse
import pickle  # noqa: TID251 - as multiprocessing sends messages
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import epistream as es
from epistream.loader.monitoring.monitor import Monitor
from epistream.loader.monitoring.stats import StatsRecorder
from epistream.loader.workers.thread_time import ThreadTime, ThreadTimer, read_thread_time
from epistream.loader.workers.worker import Message


def cpu_us(action: Callable[[], object], number: int = 2000) -> float:
    """Median CPU microseconds of one call over five rounds."""
    rounds = []
    for _ in range(5):
        began = time.thread_time()
        for _ in range(number):
            action()
        rounds.append((time.thread_time() - began) / number * 1e6)
    return statistics.median(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    arguments = parser.parse_args()
    for batch_size in (1, 8, 32):
        stream = es.EpisodeStream(
            arguments.source, batch_size=batch_size, window=es.Window(action=range(100)), decode="per_read"
        )
        with es.StreamingLoader(
            stream, num_workers=0, num_threads=1, monitor=es.MonitorOptions(log_every_s=1e5)
        ) as loader:
            for _ in loader:
                pass
            stats, report_us = loader.stats(), cpu_us(loader.report, 20)
        batch_us = stats.effort.cpu_s / stats.num_batches * 1e6
        message = Message(1, 1, 1, batch_size, None, 0.1, 0.1, stats.cache, ThreadTime(0.1, 0.1, 512))
        plain = replace(message, effort=ThreadTime())
        recorder, monitor = (
            StatsRecorder(),
            Monitor(es.MonitorOptions(log_every_s=1e5), loader.stats, loader.report),
        )
        recorder.begin()
        parts = {
            # The kernel is asked once in 5 ms at most.
            "effort": cpu_us(ThreadTimer().lap) + cpu_us(read_thread_time) * min(1.0, batch_us / 5000),
            "message": max(0.0, cpu_us(lambda m=message: pickle.dumps(m)) - cpu_us(lambda m=plain: pickle.dumps(m))),
            "recorder": cpu_us(lambda r=recorder, m=message: r.receive(0, m, 0.1))
            + cpu_us(lambda r=recorder, m=message: r.hand_out(m.num_windows, copied=False)),
            "tick": cpu_us(monitor.tick),
        }
        total = sum(parts.values())
        each = ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
        print(
            f"batch {batch_size:3}: {batch_us:9,.0f} us of CPU, watching {total:5.1f} us ({each}): "
            f"{total / batch_us * 100:.2f} %; a report {report_us / 1000:.1f} ms"
        )


if __name__ == "__main__":
    main()
