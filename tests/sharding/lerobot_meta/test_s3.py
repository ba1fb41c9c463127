"""LeRobot data sets in a bucket of S3, against a server on loopback; skipped where moto or s3fs are not installed."""

from collections import Counter

import pytest
from robots.lerobot_meta import MadeSet, numbers
from web.bucket import s3_bucket

from epistream.access import Access
from epistream.errors import SourceError
from epistream.sharding.dataset import open_dataset
from epistream.sharding.lerobot_meta import meta_files
from epistream.sharding.lerobot_meta.metadata import keep_metadata

pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture
def bucket():
    """A bucket "robots", and how to reach it."""
    with s3_bucket("robots") as found:
        yield found


def test_set_in_a_bucket_is_listed_once_and_read_again_only_when_it_changes(tmp_path, bucket, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    files, options = bucket
    root = MadeSet(lengths=[5] * 25, features={"action": numbers(2)}, episodes_per_file=10).write(tmp_path / "set")
    for file in root.rglob("*.*"):
        files.pipe_file(f"robots/cubes/{file.relative_to(root).as_posix()}", file.read_bytes())
    access = Access.of(options).by_protocol(["s3://robots/cubes"])
    asked: Counter[str] = Counter()
    ask = meta_files.ask

    def counted(file_system, question, *arguments, **more):
        asked[question] += 1
        return ask(file_system, question, *arguments, **more)

    monkeypatch.setattr(meta_files, "ask", counted)
    for times in (2, 3):  # read and seen to be unchanged since; then only looked at
        assert keep_metadata("s3://robots/cubes", access, tmp_path / "kept").length.tolist() == [5] * 25
        assert asked == {"find": times}
    assert open_dataset("s3://robots/cubes", options).num_episodes == 25
    other = MadeSet(lengths=[4] * 3, features={"action": numbers(2)}).write(tmp_path / "other")
    for file in other.rglob("*.*"):
        files.pipe_file(f"robots/cubes/{file.relative_to(other).as_posix()}", file.read_bytes())
    for number in (1, 2):
        files.rm_file(f"robots/cubes/meta/episodes/chunk-000/file-00{number}.parquet")
    assert keep_metadata("s3://robots/cubes", access, tmp_path / "kept").length.tolist() == [4] * 3
    with pytest.raises(SourceError, match=r"s3://robots/none/meta/info\.json: no such file"):
        keep_metadata("s3://robots/none", access, tmp_path / "kept")
