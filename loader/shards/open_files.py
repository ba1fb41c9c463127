"""How many files a reader keeps open: a process commonly may have 1,024 descriptors, and a plan hundreds of shards."""

import resource

# Shards, their tables and chunks of decoded frames take up to two descriptors each: six in 16. Two threads (those of a
# loader without worker processes) leave a quarter of the limit to others.
_SHARE = 16
_ENOUGH = 1 << 16


def most_open(num_readers: int) -> int:
    """Shards, tables or chunks of decoded frames, of each kind, that one of a thread's readers may keep open."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (_ENOUGH if limit == resource.RLIM_INFINITY else limit) // (_SHARE * num_readers))


def raise_limit() -> None:
    """Let this process open as many files as it may ask for. Only in processes of our own: it is ambient."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
