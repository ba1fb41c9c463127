"""A slow disk: a loop device over a file that a FUSE daemon of this module answers late. Linux, root, nothing else.

The device is a real one to whoever reads a file on it: page cache, read-ahead and request merging are the kernel's.
"""

import ctypes
import os
import queue
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# https://github.com/torvalds/linux/blob/master/include/uapi/linux/fuse.h
_IN = struct.Struct("<IIQQIIIHH")
_OUT = struct.Struct("<IiQ")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_LOOKUP, _FORGET, _GETATTR, _OPEN, _READ, _STATFS = 1, 2, 3, 14, 15, 17
_RELEASE, _FLUSH, _INIT, _OPENDIR, _RELEASEDIR, _BATCH_FORGET = 18, 25, 26, 27, 29, 42
_ASYNC_READ, _ASYNC_DIO, _MAX_PAGES = 1, 1 << 15, 1 << 22
_DIRECT_IO = 1
_FILE = 2  # its node
_MOST = 1 << 20
# What lies nearer than that to the last read is in a disk's own buffer.
_TRACK_BYTES = 256 << 10


@dataclass(frozen=True)
class Model:
    """What a disk does with a request; 0 is no limit.

    Args:
        reads_per_s: requests that it begins in a second.
        bytes_per_s: of all requests together.
        seek_s: of each request that does not begin near where the one before it ended; one after the other, one head.
        latency_s: of each request, beside others: a network between.
    """

    reads_per_s: float = 0
    bytes_per_s: float = 0
    seek_s: float = 0
    latency_s: float = 0


class Head:
    """Which request is served next, and when each is answered: a disk sorts what waits by where it lies."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.num_reads = self.num_bytes = self.num_seeks = 0
        self._free_at = self._turn_at = 0.0
        self._at = 0
        self._waiting: list[tuple[int, int, int]] = []
        self._arrived = threading.Condition()

    def put(self, offset: int, size: int, unique: int) -> None:
        """A request comes."""
        with self._arrived:
            self._waiting.append((offset, size, unique))
            self._arrived.notify()

    def serve(self) -> tuple[float, int, int, int]:
        """When the next request is done, which one it is, its offset and size; returns when the next may be chosen."""
        with self._arrived:
            is_busy = bool(self._waiting)
            self._arrived.wait_for(lambda: self._waiting)
            # On from where the head is, then from the lowest.
            chosen = min(self._waiting, key=lambda request: (request[0] < self._at, request[0]))
            self._waiting.remove(chosen)
        offset, size, unique = chosen
        model, now = self.model, time.monotonic()
        # Sleeps are a little too long; a disk that is busy catches up with that.
        begin = max(self._free_at, now - 0.005 if is_busy else now)
        if model.reads_per_s:
            begin = self._turn_at = max(self._turn_at + 1 / model.reads_per_s, begin)
        if abs(offset - self._at) > _TRACK_BYTES:
            begin += model.seek_s
            self.num_seeks += 1
        self._at = offset + size
        self._free_at = begin + (size / model.bytes_per_s if model.bytes_per_s else 0)
        self.num_reads += 1
        self.num_bytes += size
        time.sleep(max(0.0, self._free_at - time.monotonic()))
        return self._free_at + model.latency_s, unique, offset, size


class SlowFile(threading.Thread):
    """Serves one file at `folder`/disk, read only, until unmounted."""

    def __init__(self, image: Path, folder: Path, model: Model) -> None:
        super().__init__(daemon=True)
        self.head = Head(model)
        self._image = os.open(image, os.O_RDONLY)
        self._size = os.fstat(self._image).st_size
        self._fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={self._fuse},rootmode=40000,user_id=0,group_id=0,max_read={_MOST}"
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(b"slow", bytes(folder), b"fuse", 1 | 2 | 4, options.encode()):
            raise OSError(ctypes.get_errno(), "mount of FUSE")
        self._late: queue.SimpleQueue[tuple[float, int, int, int]] = queue.SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()
        threading.Thread(target=self._answer_late, daemon=True).start()

    def run(self) -> None:
        _hurry()
        while True:
            try:
                request = os.read(self._fuse, _MOST + 8192)
            except OSError as error:
                if error.errno == 2:  # interrupted
                    continue
                return
            _, code, unique, node, *_ = _IN.unpack_from(request)
            if code == _READ:
                _, offset, size = struct.unpack_from("<QQI", request, _IN.size)
                size = max(0, min(size, self._size - offset))
                self.head.put(offset, size, unique)
            elif code not in (_FORGET, _BATCH_FORGET):
                self._send(unique, *self._reply(code, node, request))

    def _serve(self) -> None:
        _hurry()
        while True:
            self._late.put(self.head.serve())

    def _answer_late(self) -> None:
        _hurry()
        while True:
            due, unique, offset, size = self._late.get()
            data = os.pread(self._image, size, offset)
            time.sleep(max(0.0, due - time.monotonic()))
            self._send(unique, data)

    def _reply(self, code: int, node: int, request: bytes) -> tuple[bytes, int]:
        if code == _INIT:
            flags = _ASYNC_READ | _ASYNC_DIO | _MAX_PAGES
            return struct.pack("<IIIIHHIIHHI28x", 7, 31, _MOST, flags, 256, 192, _MOST, 1, _MOST // 4096, 0, 0), 0
        if code == _LOOKUP:
            if request[_IN.size :].rstrip(b"\0") != b"disk":
                return b"", -2
            return struct.pack("<QQQQII", _FILE, 0, 3600, 3600, 0, 0) + self._attr(_FILE), 0
        if code == _GETATTR:
            return struct.pack("<QII", 3600, 0, 0) + self._attr(node), 0
        if code in (_OPEN, _OPENDIR):
            return struct.pack("<QII", 1, _DIRECT_IO if code == _OPEN else 0, 0), 0
        return b"", 0 if code in (_RELEASE, _RELEASEDIR, _FLUSH) else -38

    def _attr(self, node: int) -> bytes:
        size, mode = (self._size, 0o100400) if node == _FILE else (0, 0o40500)
        return _ATTR.pack(node, size, -(-size // 512), 0, 0, 0, 0, 0, 0, mode, 1, 0, 0, 0, 4096, 0)

    def _send(self, unique: int, data: bytes, error: int = 0) -> None:
        with suppress(OSError):
            os.write(self._fuse, _OUT.pack(_OUT.size + len(data), error, unique) + data)


def _hurry() -> None:
    """Let this thread have a core at once: a disk has one of its own."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), -20)


def make_image(image: Path, source: Path) -> None:
    """An ext4 image that holds a copy of a folder."""
    size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    with image.open("wb") as file:
        file.truncate(int(size * 1.1) + (64 << 20))
    subprocess.run(["mkfs.ext4", "-q", "-m", "0", "-d", source, image], check=True)


@contextmanager
def slow_disk(image: Path, model: Model) -> Iterator[tuple[Path, SlowFile]]:
    """The image's file system, mounted read only from a slow device; gives where, and the file behind it."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        behind, mounted = Path(folder, "behind"), Path(folder, "mounted")
        behind.mkdir()
        mounted.mkdir()
        file = SlowFile(image, behind, model)
        file.start()
        device = ""
        try:
            made = ["losetup", "--find", "--show", "--read-only", "--direct-io=on", behind / "disk"]
            device = subprocess.run(made, check=True, capture_output=True, text=True, timeout=60).stdout.strip()
            subprocess.run(["mount", "-o", "ro,noload", device, mounted], check=True, timeout=60)
            try:
                yield mounted, file
            finally:
                subprocess.run(["umount", "-l", mounted], check=True, timeout=60)
        finally:
            if device:
                subprocess.run(["losetup", "-d", device], check=False, timeout=60)
            subprocess.run(["umount", "-l", behind], check=False, timeout=60)


def drop_caches() -> None:
    """Forget the pages of all files that are not written to."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
