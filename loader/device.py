"""Moves batches to a device ahead of the training loop, on a stream of its own; on a CPU it does nothing."""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, cast

import torch

from epistream.errors import OptionError
from epistream.loader.samples.transforms import map_tensors
from epistream.loader.workers.ring import Ring

logger = logging.getLogger(__name__)

Hook = Callable[[Any], Any]


class Event(Protocol):
    """A point in a stream's work; `torch.cuda.Event` is one."""

    def query(self) -> bool:
        """Whether the work before it is done."""

    def synchronize(self) -> None:
        """Wait until it is."""


class Mover(Protocol):
    """What a device can do. All methods are called from the training loop's thread."""

    def aside(self) -> AbstractContextManager[Any]:
        """Work that is begun inside goes to the side stream."""

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Begin to copy a tensor to the device."""

    def mark(self) -> Event:
        """The point that the side stream has come to."""

    def adopt(self, event: Event, batch: Any) -> None:
        """Let the loop's stream wait for `event`, and keep the batch's memory until that stream is done with it."""


class _CudaMover:
    """Copies on a CUDA stream of its own. Nothing of it is touched unless a CUDA device was asked for."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def aside(self) -> AbstractContextManager[Any]:
        context: AbstractContextManager[Any] = torch.cuda.stream(self._stream)
        return context

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        # It begins at once and goes on by itself if the memory is page-locked.
        return tensor.to(self._device, non_blocking=True)

    def mark(self) -> Event:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return cast(Event, event)

    def adopt(self, event: Event, batch: Any) -> None:
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(cast(torch.cuda.Event, event))
        # The allocator knows the stream that a tensor was made on only, and would reuse its memory too early.
        map_tensors(batch, lambda tensor: tensor.record_stream(stream))


class DeviceFeed(Iterator[Any]):
    """Batches on the device, the next one on its way while the loop works on this one.

    A batch's host memory is a slot of the ring: it goes back when nothing refers to it. torch keeps track of
    pending copies only for memory that it has page-locked itself, so the host batch is held here until the event
    behind its copies has come. At most two are held.

    Args:
        batches: on the host.
        mover: the device.
        hook: called on every batch on the device, on the loop's stream: where augmentation belongs.
    """

    def __init__(self, batches: Iterator[Any], mover: Mover, hook: Hook | None = None) -> None:
        self._batches = batches
        self._mover = mover
        self._hook = hook
        self._ready: deque[tuple[Any, Event]] = deque()
        self._in_copy: deque[tuple[Any, Event]] = deque()

    def __next__(self) -> Any:
        if not self._ready:
            self._begin()
        if not self._ready:
            raise StopIteration
        batch, event = self._ready.popleft()
        self._begin()
        self._mover.adopt(event, batch)
        try:
            return batch if self._hook is None else self._hook(batch)
        except StopIteration as error:  # it would end the epoch early, without a word
            raise RuntimeError("on_device raised StopIteration") from error

    def close(self) -> None:
        """Wait for the copies that are under way; the host memory may go afterwards."""
        while self._in_copy:
            self._in_copy.popleft()[1].synchronize()
        self._ready.clear()

    def _begin(self) -> None:
        # Two at most: waiting for an old copy costs nothing, holding on to slots would stop the workers.
        while self._in_copy and (len(self._in_copy) > 1 or self._in_copy[0][1].query()):
            self._in_copy.popleft()[1].synchronize()
        host = next(self._batches, None)
        if host is None:
            return
        with self._mover.aside():
            moved = map_tensors(host, self._mover.copy)
        event = self._mover.mark()
        self._in_copy.append((host, event))
        self._ready.append((moved, event))


@contextmanager
def move_ahead(
    batches: Iterator[Any], device: torch.device | None, hook: Hook | None, ring: Ring | None
) -> Iterator[Iterator[Any]]:
    """The batches on `device` (None and the CPU leave them where they are), each through `hook`.

    Copies that are under way when the block is left are waited for. `ring`, if there is one, is page-locked for CUDA.
    """
    if device is None or device.type != "cuda":
        # No map: a StopIteration out of the hook would end the epoch early, without a word.
        yield batches if hook is None else (hook(batch) for batch in batches)
        return
    moved = DeviceFeed(batches, _CudaMover(device), hook)
    if ring is not None:
        _lock_pages(ring)
    try:
        yield moved
    finally:
        moved.close()


def check_device(device: str | torch.device | None) -> torch.device | None:
    """A device that batches can be moved to.

    Raises:
        OptionError: any but a CPU or a CUDA device, or CUDA where there is none.
    """
    if device is None:
        return None
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise OptionError(f"device: {device!r}, wanted 'cpu' or a CUDA device such as 'cuda:0'.") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise OptionError(f"device: {device}, but torch finds no CUDA here. Use device='cpu', or leave it out.")
    if found.type not in ("cpu", "cuda"):
        raise OptionError(f"device: {device!r}, wanted 'cpu' or a CUDA device. Move batches in the loop instead.")
    return found


def _lock_pages(ring: Ring) -> None:
    """Page-lock a ring, so that copies to a CUDA device need no staging."""
    cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    if not ring.lock_pages(
        lambda address, size: int(cudart.cudaHostRegister(address, size, 0)),
        lambda address: int(cudart.cudaHostUnregister(address)),
    ):
        logger.warning(
            "%d bytes of batches not page-locked: copies to the device are staged, and slower.", ring.num_bytes
        )
