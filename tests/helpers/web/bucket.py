"""A bucket of S3 on loopback, by moto; who uses it skips where that or s3fs is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def s3_bucket(name: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The file system that a bucket is in, and what reaches it. Servers of one process share buckets: names differ."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {
        "key": "someone",
        "secret": "something",
        "endpoint_url": f"http://{host}:{port}",
        "client_kwargs": {"region_name": "eu-central-1"},
    }
    try:
        files = s3fs.S3FileSystem(**options)
        files.mkdir(name)
        yield files, options
    finally:
        server.stop()
