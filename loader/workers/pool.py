"""The workers of a loader: started once, told epochs, listened to, stopped; dead ones are reported."""

import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from numpy.typing import NDArray

from epistream.errors import WorkerError
from epistream.loader.reading.job import ReadJob
from epistream.loader.workers.pipe import Record, RecordKind
from epistream.loader.workers.ring import Ring
from epistream.loader.workers.slots import Slots
from epistream.loader.workers.worker import NO_EPOCH, Message, Worker
from epistream.processes import how_it_ended
from epistream.working_folder import standing_somewhere

StartMethod = Literal["fork", "spawn", "forkserver"]
# How workers are made to end, and seconds until the next step.
Step = tuple[Callable[[BaseProcess], None] | None, float]

# Workers finish the batch in hand before they leave; one that is stuck in a fetch is killed after this.
_STOP_S = 5.0
# The same where the run has failed: its batches are of no use to anybody, and its error waits to be told.
_FAILED_S = 1.0


class _Handle:
    """What the training process holds of a worker: its process or thread, the pipes to it, and its slots in use."""

    def __init__(self, worker: Worker, messages: Connection) -> None:
        self.worker, self.inbox, self.messages = worker, worker.inbox, messages
        self.process: BaseProcess | None = None
        self.thread: threading.Thread | None = None
        self.held: set[int] = set()  # slots that the consumer has in hands
        self.arrived = select.poll()
        self.arrived.register(messages.fileno(), select.POLLIN)

    def start(self, start_method: StartMethod | None) -> None:
        """Start a process, or a thread without a method."""
        name = f"epistream-worker-{self.worker.index}"
        if start_method is None:
            thread = threading.Thread(target=self.worker.run, name=name, daemon=True)
            thread.start()
            self.thread = thread  # what did not start cannot be joined
            return
        context = multiprocessing.get_context(start_method)
        process = context.Process(target=self.worker.run_in_process, name=name, daemon=True)  # type: ignore[attr-defined]
        with standing_somewhere():
            process.start()
        self.process = process
        # Only the worker may hold the sending end, or its death would not end the stream of messages.
        self.worker.outbox.close()

    def close(self) -> None:
        """Close its pipes, but for those that a thread which is still stuck may use."""
        self.messages.close()
        if self.thread is None or not self.thread.is_alive():
            self.inbox.close()
            self.worker.outbox.close()

    def __str__(self) -> str:
        """For messages."""
        if self.process is None:
            return f"thread {self.worker.index} of {self.worker.num_workers}"
        return f"worker {self.worker.index} of {self.worker.num_workers} (pid {self.process.pid})"

    def obituary(self) -> str:
        """How its process, which has ended, came to that."""
        assert self.process is not None
        self.process.join(1.0)
        code = self.process.exitcode
        cure = "Its own output, above, may say why."
        if code == -signal.SIGKILL:
            cure = "Look into 'dmesg'; lower the cache budget, the batch size or num_workers."
        return f"worker {self.worker.index} (pid {self.process.pid}): {how_it_ended(code)}. {cure}"


class WorkerPool:
    """`num_workers` processes (or threads, with `start_method` None), each with slots of its own in one ring.

    Args:
        job: what to read.
        slots: how batches lie in them.
        num_workers: how many.
        slots_per_worker: slots that each may have in flight or in the consumer's hands.
        start_method: how processes are started; None makes threads.
    """

    def __init__(
        self, job: ReadJob, slots: Slots, num_workers: int, slots_per_worker: int, start_method: StartMethod | None
    ) -> None:
        self.num_workers = num_workers
        self.slots = slots
        self.ring = Ring(num_workers * slots_per_worker, slots.layout.num_bytes)
        self._pid = os.getpid()
        self._serial = NO_EPOCH
        self._handles: list[_Handle] = []
        # Every pipe exists before the first fork, and every fork happens before any thread starts.
        pipes = [multiprocessing.Pipe(duplex=False) for _ in range(num_workers)]
        for index, (messages, outbox) in enumerate(pipes):
            own_slots = range(index * slots_per_worker, (index + 1) * slots_per_worker)
            worker = Worker(index, num_workers, own_slots, outbox, job, slots, self.ring)
            self._handles.append(_Handle(worker, messages))
        try:
            for handle in self._handles:
                handle.start(start_method)
        except BaseException:
            self.stop()
            raise

    @property
    def is_ours(self) -> bool:
        """Whether this process started it; a forked child must leave its parent's workers alone."""
        return self._pid == os.getpid()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that are processes."""
        return [handle.process.pid for handle in self._handles if handle.process and handle.process.pid]

    def name_of(self, worker_index: int) -> str:
        """A worker, for messages."""
        return str(self._handles[worker_index])

    def run(self, serial: int, epoch: int, start: int) -> None:
        """Let all workers begin at position `start` of `epoch`; what they were doing is abandoned."""
        self._serial = serial
        for handle in self._handles:
            handle.inbox.send(Record(RecordKind.RUN, serial, epoch, start))

    def is_running(self, serial: int) -> bool:
        """Whether this is what workers of this process were last told to run, and they were not stopped since."""
        return self.is_ours and self._serial == serial

    def receive(self, worker_index: int, wait_s: float) -> Message | None:
        """The next message of a worker; None if there is none within `wait_s`.

        Raises:
            WorkerError: a worker died; the message says which and of what.
        """
        handle = self._handles[worker_index]
        message: Message
        # Mostly it is there already; a full wait on every worker costs more than gathering a small batch.
        if handle.arrived.poll(0):
            with suppress(EOFError):
                message = handle.messages.recv()
                return message
        sentinels = {each.process.sentinel: each for each in self._handles if each.process is not None}
        ready = wait([handle.messages, *sentinels], max(0.0, wait_s))
        # What a worker sent before it died is still good.
        if handle.messages in ready or handle.messages.poll():
            with suppress(EOFError):
                message = handle.messages.recv()
                return message
            ready = [handle.process.sentinel] if handle.process else []
        dead = [sentinels[item] for item in ready if isinstance(item, int)]
        if dead:
            raise WorkerError(dead[0].obituary())
        return None

    def take(self, worker_index: int, message: Message) -> tuple[Iterator[dict[str, NDArray[Any]]], bool]:
        """The batches of a filled slot, and whether they are copies.

        They are views of the slot, which goes back when the last of them dies, unless the consumer already holds all
        other slots of this worker.
        """
        handle = self._handles[worker_index]
        held, inbox = handle.held, handle.inbox

        def give_back(slot: int) -> None:
            held.discard(slot)
            inbox.send(Record(RecordKind.SLOT, slot))

        if len(held) + 1 >= len(handle.worker.own_slots):
            batches = self.slots.batches(self.ring.slot(message.slot), message.num_windows)
            # Each by itself: a batch that is kept must not keep the memory of its neighbours.
            copies = [{name: array.copy() for name, array in views.items()} for views in batches]
            self.give_back(worker_index, message.slot)
            return iter(copies), True
        held.add(message.slot)
        return self.slots.batches(self.ring.hand_out(message.slot, give_back), message.num_windows), False

    def give_back(self, worker_index: int, slot: int) -> None:
        """Return a slot whose batches nobody has taken."""
        self._handles[worker_index].inbox.send(Record(RecordKind.SLOT, slot))

    def stop(self) -> None:
        """Stop all workers, by force if they do not come. Batches that the consumer holds stay valid.

        In a forked child nothing happens: the workers are its parent's.
        """
        self._stop(((None, _STOP_S), (BaseProcess.terminate, _STOP_S), (BaseProcess.kill, _STOP_S)))

    def give_up(self, hung: int | None) -> None:
        """As `stop`, where a run has failed: whoever does not come is killed soon.

        Args:
            hung: the worker that did not come in all the time that it was given, which is killed at once.
        """
        if hung is not None and self.is_ours and (process := self._handles[hung].process) is not None:
            process.kill()
        self._stop(((None, _FAILED_S), (BaseProcess.kill, _STOP_S)))

    def _stop(self, steps: Sequence[Step]) -> None:
        if not self.is_ours:
            return
        self._serial = NO_EPOCH
        handles, self._handles = self._handles, []
        for handle in handles:
            handle.inbox.send(Record(RecordKind.STOP))
        deadline = time.monotonic() + steps[0][1]
        for handle in handles:
            if handle.thread is not None:
                handle.thread.join(max(0.1, deadline - time.monotonic()))
        _end_all([handle.process for handle in handles if handle.process is not None], steps, deadline)
        for handle in handles:
            handle.close()
        self.ring.close()


def _end_all(processes: Sequence[BaseProcess], steps: Sequence[Step], deadline: float) -> None:
    """Take one step after the other with all that are still there, at a time."""
    for force, wait_s in steps:
        alive = [process for process in processes if process.is_alive()]
        if force is not None:
            deadline = time.monotonic() + wait_s
            for process in alive:
                force(process)
        for process in alive:
            process.join(max(0.1, deadline - time.monotonic()))
    for process in processes:
        process.close()
