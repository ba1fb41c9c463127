"""Values that are worked out once, by threads and in forked processes."""

import threading

import epistream as es
from epistream.lazy import lazy
from epistream.loader.reading import job as job_module


class Figure:
    def __init__(self):
        self.times = 0

    @lazy
    def value(self) -> int:
        """What is worked out."""
        self.times += 1
        return 7 * self.times


def test_lazy_value_is_worked_out_once_for_each_instance():
    figure, other = Figure(), Figure()
    assert (figure.value, figure.value, figure.times) == (7, 7, 1)
    assert other.times == 0
    assert Figure.value.__doc__ == "What is worked out."


def test_lazy_value_that_two_threads_work_out_is_the_same_for_both():
    class Place:
        barrier = threading.Barrier(2, timeout=30)

        @lazy
        def value(self) -> object:
            self.barrier.wait()
            return object()

    place, seen = Place(), []
    threads = [threading.Thread(target=lambda: seen.append(place.value)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 2
    assert seen[0] is seen[1] is place.value


def test_workers_can_be_forked_while_a_thread_works_out_what_another_loader_reads(aloha_shards, monkeypatch):
    """As a training loader of threads and a validation loader of processes do."""
    inside, leave = threading.Event(), threading.Event()
    ordinary = job_module.open_shards

    def slow(*arguments):
        if threading.current_thread() is thread:
            inside.set()
            leave.wait(60)
        return ordinary(*arguments)

    monkeypatch.setattr(job_module, "open_shards", slow)
    one, other = (es.EpisodeStream(aloha_shards, batch_size=35, features=["action"]) for _ in range(2))
    thread = threading.Thread(target=lambda: one.job.reader_options, daemon=True)
    thread.start()
    try:
        assert inside.wait(60)
        with es.StreamingLoader(other, num_workers=1, timeout_s=60) as loader:
            assert len(list(loader)) == 4
    finally:
        leave.set()
        thread.join(60)
