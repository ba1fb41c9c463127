"""What a user may say about the node's cache."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from epistream.access import RetryOptions
from epistream.options import Count, Patience, Range, Size, check
from epistream.units import parse_size
from epistream.working_folder import absolute

Mode = Literal["auto", "shm", "disk", "off"]


@dataclass(frozen=True)
class CacheOptions:
    """Options of `NodeCache`.

    Args:
        mode: where shards are kept on a node. "auto" reads files on local disks in place and keeps everything else in
            shared memory; "shm" and "disk" keep everything there; "off" reads every source directly.
        budget_bytes: most bytes in shared memory; what the machine has if None. Also as text, such as "8GiB". If given,
            also what decoded frames may take under ``decode="auto"``.
        directory: on a tmpfs; one per user in /dev/shm if None. The user's jobs share that one.
        disk_directory: a second tier on a local disk, which outlives the job. What is fetched stays there when memory
            needs the room. None for one per user in /var/tmp, used only where shared memory is too small, and removed
            by its last user.
        disk_budget_bytes: most bytes on the disk; a share of what is free if None.
        keep: the directories outlive their last user.
        memory_fraction: share of the free memory that the cache may take. Above 0, at most 1.
        fill_timeout_s: seconds to wait for another process's fill; for one that is stopped, once in all.
        room_timeout_s: seconds to wait for room in the cache. It is full of what others lease then.
        fetch_timeout_s: seconds for the fetch of a shard, retries included; so of each file of the manifest, whose
            requests the next two are for as well.
        request_timeout_s: seconds for one request.
        attempts: tries of one request.
        parallel_requests: requests at a time for a shard.

    Raises:
        OptionError: a value outside its range.
    """

    mode: Mode = "auto"
    budget_bytes: Size | None = None
    directory: str | Path | None = None
    disk_directory: str | Path | None = None
    disk_budget_bytes: Size | None = None
    keep: bool = False
    memory_fraction: Annotated[float, Range(gt=0, le=1)] = 0.5
    fill_timeout_s: Patience = 660.0
    room_timeout_s: Patience = 10.0
    fetch_timeout_s: Patience = 600.0
    request_timeout_s: Patience = 60.0
    attempts: Annotated[Count, Range(le=1000)] = 6
    parallel_requests: Annotated[Count, Range(le=1024)] = 8

    def __post_init__(self) -> None:
        check(self, "cache ")

    def settled(self) -> "CacheOptions":
        """The same, with directories that stay where they are wherever a process goes.

        Raises:
            OptionError: one is relative, and the working directory is gone.
        """

        def settle(given: str | Path | None) -> str | Path | None:
            return str(absolute(Path(given))) if given else given

        return replace(self, directory=settle(self.directory), disk_directory=settle(self.disk_directory))

    @property
    def retries(self) -> RetryOptions:
        """How hard to try to read what shards come from, and the manifest that names them."""
        return RetryOptions(self.attempts, self.request_timeout_s, self.fetch_timeout_s)

    def budget(self, tier: str) -> int | None:
        """Most bytes in the tier "shm" or "disk"; None leaves it to what the machine has."""
        size = self.disk_budget_bytes if tier == "disk" else self.budget_bytes
        return None if size is None else parse_size(size)
