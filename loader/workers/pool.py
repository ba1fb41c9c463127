"""The workers of a loader: started once, told epochs, listened to, stopped; dead ones are reported."""

import multiprocessing
import os
import select
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from numpy.typing import NDArray

from epistream.errors import DeadlineError, WorkerError
from epistream.loader.reading.job import Job
from epistream.loader.workers.pipe import Kind, Record, RecordPipe
from epistream.loader.workers.ring import Ring
from epistream.loader.workers.slots import Slots
from epistream.loader.workers.worker import NO_EPOCH, Message, WorkerSeat, run_process, run_worker
from epistream.processes import how_it_ended

StartMethod = Literal["fork", "spawn", "forkserver"]

# Workers finish the batch in hand before they leave; one that is stuck in a fetch is killed after this.
_STOP_S = 5.0


@dataclass
class _Member:
    seat: WorkerSeat
    messages: Connection
    process: BaseProcess | None = None
    thread: threading.Thread | None = None
    held: set[int] = field(default_factory=set)  # slots that the consumer has in hands

    def __post_init__(self) -> None:
        self.arrived = select.poll()
        self.arrived.register(self.messages.fileno(), select.POLLIN)


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
        self, job: Job, slots: Slots, num_workers: int, slots_per_worker: int, start_method: StartMethod | None
    ) -> None:
        self.num_workers = num_workers
        self.slots = slots
        self.ring = Ring(num_workers * slots_per_worker, slots.layout.num_bytes)
        self._pid = os.getpid()
        self._serial = NO_EPOCH
        self._members: list[_Member] = []
        # Every pipe exists before the first fork, and every fork happens before any thread starts.
        pipes = [multiprocessing.Pipe(duplex=False) for _ in range(num_workers)]
        for index, (messages, outbox) in enumerate(pipes):
            own = range(index * slots_per_worker, (index + 1) * slots_per_worker)
            seat = WorkerSeat(index, num_workers, own, RecordPipe(), outbox, job, slots, self.ring)
            self._members.append(_Member(seat, messages))
        try:
            for member in self._members:
                self._start(member, start_method)
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
        return [member.process.pid for member in self._members if member.process and member.process.pid]

    def run(self, serial: int, epoch: int, start: int) -> None:
        """Let all workers begin at position `start` of `epoch`; what they were doing is abandoned."""
        self._serial = serial
        for member in self._members:
            member.seat.inbox.send(Record(Kind.RUN, serial, epoch, start))

    def is_running(self, serial: int) -> bool:
        """Whether this is what workers of this process were last told to run, and they were not stopped since."""
        return self.is_ours and self._serial == serial

    def receive(self, worker_index: int, timeout_s: float) -> Message:
        """The next message of a worker.

        Raises:
            WorkerError: a worker died; the message says which and of what.
            DeadlineError: nothing came within `timeout_s`.
        """
        member = self._members[worker_index]
        # Mostly it is there already; a full wait on every worker costs more than gathering a small batch.
        if member.arrived.poll(0):
            with suppress(EOFError):
                there: Message = member.messages.recv()
                return there
        sentinels = {m.process.sentinel: m for m in self._members if m.process is not None}
        ready = wait([member.messages, *sentinels], timeout_s)
        # What a worker sent before it died is still good.
        if member.messages in ready or member.messages.poll():
            with suppress(EOFError):
                message: Message = member.messages.recv()
                return message
            ready = [member.process.sentinel] if member.process else []
        dead = [sentinels[item] for item in ready if isinstance(item, int)]
        if dead:
            raise WorkerError(_obituary(dead[0]))
        raise DeadlineError(
            f"worker {worker_index}: no batch within {timeout_s:g} s. Look at the fetch errors in the log, or raise "
            "StreamingLoader(timeout_s=...)."
        )

    def take(self, worker_index: int, message: Message) -> tuple[Iterator[dict[str, NDArray[Any]]], bool]:
        """The batches of a filled slot, and whether they are copies.

        They are views of the slot, which goes back when the last of them dies, unless the consumer already holds all
        other slots of this worker.
        """
        member = self._members[worker_index]
        held, inbox = member.held, member.seat.inbox

        def give_back(slot: int) -> None:
            held.discard(slot)
            inbox.send(Record(Kind.SLOT, slot))

        if len(held) + 1 >= len(member.seat.own):
            batches = self.slots.batches(self.ring.slot(message.slot), message.num_windows)
            # Each by itself: a batch that is kept must not keep the memory of its neighbours.
            copies = [{name: array.copy() for name, array in views.items()} for views in batches]
            self.give_back(worker_index, message.slot)
            return iter(copies), True
        held.add(message.slot)
        return self.slots.batches(self.ring.hand_out(message.slot, give_back), message.num_windows), False

    def give_back(self, worker_index: int, slot: int) -> None:
        """Return a slot whose batches nobody has taken."""
        self._members[worker_index].seat.inbox.send(Record(Kind.SLOT, slot))

    def stop(self) -> None:
        """Stop all workers, by force if they do not come. Batches that the consumer holds stay valid."""
        self._serial = NO_EPOCH
        for member in self._members:
            member.seat.inbox.send(Record(Kind.STOP))
        deadline = time.monotonic() + _STOP_S
        for member in self._members:
            if member.thread is not None:
                member.thread.join(max(0.1, deadline - time.monotonic()))
        _end_all([member.process for member in self._members if member.process is not None], deadline)
        for member in self._members:
            member.messages.close()
            if member.thread is None or not member.thread.is_alive():
                member.seat.inbox.close()
                member.seat.outbox.close()
        self.ring.close()

    def _start(self, member: _Member, start_method: StartMethod | None) -> None:
        name = f"epistream-worker-{member.seat.worker_index}"
        if start_method is None:
            thread = threading.Thread(target=run_worker, args=(member.seat,), name=name, daemon=True)
            thread.start()
            member.thread = thread  # what did not start cannot be joined
            return
        context = multiprocessing.get_context(start_method)
        process = context.Process(target=run_process, args=(member.seat,), name=name, daemon=True)  # type: ignore[attr-defined]
        process.start()
        member.process = process
        # Only the worker may hold the sending end, or its death would not end the stream of messages.
        member.seat.outbox.close()


def _end_all(processes: Sequence[BaseProcess], deadline: float) -> None:
    """Wait until `deadline`, then end by force who is still there: all at a time, not one after the other."""
    for force in (None, BaseProcess.terminate, BaseProcess.kill):
        alive = [process for process in processes if process.is_alive()]
        if force is not None:
            deadline = time.monotonic() + _STOP_S
            for process in alive:
                force(process)
        for process in alive:
            process.join(max(0.1, deadline - time.monotonic()))
    for process in processes:
        process.close()


def _obituary(member: _Member) -> str:
    process = member.process
    assert process is not None
    process.join(1.0)
    code = process.exitcode
    cure = "Its own output, above, may say why."
    if code == -signal.SIGKILL:
        cure = "Look into 'dmesg'; lower the cache budget, the batch size or num_workers."
    return f"worker {member.seat.worker_index} (pid {process.pid}): {how_it_ended(code)}. {cure}"
