"""What a user may say about the node's cache."""

from dataclasses import dataclass
from typing import Literal, get_args

from epistream.errors import OptionError

Mode = Literal["auto", "shm", "disk", "off"]


@dataclass(frozen=True)
class CacheOptions:
    """Options of `NodeCache`.

    Args:
        mode: "auto" reads files on local disks in place and keeps everything else in shared memory; "shm" and
            "disk" keep everything there; "off" reads every source directly.
        budget_bytes: Most bytes in shared memory; None leaves it to what the machine has.
        directory: Directory on a tmpfs; None for one per user in /dev/shm, which the user's jobs share.
        disk_directory: Directory on a local disk. When given, it is also a second tier: what is fetched stays
            there when memory needs the room, and it outlives the job. None for one per user in /var/tmp, used only
            where shared memory is too small, and removed by its last user.
        disk_budget_bytes: Most bytes on the disk; None for a share of what is free.
        keep: The directories outlive their last user.
        memory_fraction: Share of the free memory that the cache may take, 0 to 1.
        fill_timeout_s: How long another process's fill is waited for.
        room_timeout_s: How long leases of others are waited for when the budget is full.
        fetch_timeout_s: How long the fetch of one shard may take, retries included.
        request_timeout_s: How long one request may take.
        attempts: Tries of one request.
        parallel_requests: Requests at a time for one shard.
    """

    mode: Mode = "auto"
    budget_bytes: int | None = None
    directory: str | None = None
    disk_directory: str | None = None
    disk_budget_bytes: int | None = None
    keep: bool = False
    memory_fraction: float = 0.5
    fill_timeout_s: float = 660.0
    room_timeout_s: float = 10.0
    fetch_timeout_s: float = 600.0
    request_timeout_s: float = 60.0
    attempts: int = 6
    parallel_requests: int = 8

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise OptionError(f"cache mode: {self.mode!r}, wanted one of {', '.join(get_args(Mode))}.")
        if not 0.0 < self.memory_fraction <= 1.0:
            raise OptionError(
                f"memory_fraction: {self.memory_fraction}, wanted above 0 and at most 1. The default is 0.5."
            )
        for name in ("budget_bytes", "disk_budget_bytes"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise OptionError(f"{name}: {value}, wanted 0 or more bytes. Leave it out for what the machine has.")
        for name in ("fill_timeout_s", "room_timeout_s", "fetch_timeout_s", "request_timeout_s"):
            if getattr(self, name) < 0:
                raise OptionError(
                    f"{name}: {getattr(self, name)}, wanted 0 or more seconds. Leave it out for the default."
                )
        for name in ("attempts", "parallel_requests"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name}: {getattr(self, name)}, wanted 1 or more. Leave it out for the default.")
