"""LeRobot data sets in a bucket of S3, against a server on loopback; skipped where moto or s3fs are not installed."""

import pytest
from robots.lerobot_meta import numbers, video
from robots.lerobot_sets import RobotSet
from robots.reading import all_steps, steps_seen, stream_of
from web.bucket import s3_bucket

from epistream.errors import SourceChangedError

pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")

FEATURES = {"observation.state": numbers(6), "observation.images.top": video()}


@pytest.fixture(scope="module")
def bucket():
    """A bucket "fleet", and how to reach it."""
    with s3_bucket("fleet") as found:
        yield found


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_set_in_a_bucket_gives_each_step_once_until_it_is_replaced(tmp_path, bucket, version):
    files, options = bucket
    spec = RobotSet(version=version, lengths=(20, 3), features=FEATURES)
    root, url = spec.write(tmp_path / "set"), f"s3://fleet/{version}"
    names = [file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()]
    for name in names:
        files.pipe_file(f"fleet/{version}/{name}", (root / name).read_bytes())
    stream = stream_of(url, storage_options=options, cache="off")
    assert steps_seen(stream, spec) == all_steps(spec)
    batches = iter(stream)
    next(batches)
    whole = {name: (root / name).read_bytes() for name in names if name.endswith(".mp4")}
    for name, data in whole.items():  # of the same size
        files.pipe_file(f"fleet/{version}/{name}", data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with pytest.raises(SourceChangedError, match=r"\.mp4: ETag=.*, wanted .*Open the dataset again"):
        list(batches)
    del batches
    for name, data in whole.items():
        files.pipe_file(f"fleet/{version}/{name}", data)
    assert steps_seen(stream_of(url, storage_options=options, cache="off"), spec) == all_steps(spec)
