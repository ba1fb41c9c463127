"""Tars that are damaged, and tars of anybody's members: indexing, reading and checking end in named errors."""

import contextlib
import io
import shutil
import tarfile
import warnings

import numpy as np
from fuzzing import JUNK, as_json, damaged, fuzzed, only_named_errors
from hdf5_files import aloha_raw, jpeg, picture
from hypothesis import given
from hypothesis import strategies as st

import epistream as es
from epistream.sharding.check.verify import verify
from epistream.sharding.dataset import open_dataset
from epistream.sharding.tar.reindex import ReindexOptions, reindex


def npy(array):
    target = io.BytesIO()
    np.save(target, array, allow_pickle=False)
    return target.getvalue()


def index_and_use(folder):
    with only_named_errors():
        reindex(str(folder), ReindexOptions(overwrite=True))
        dataset = open_dataset(str(folder))
        verify(dataset)
        for _, batch in zip(
            range(2), es.EpisodeStream(str(folder), batch_size=3, cache="off", split=None), strict=False
        ):
            assert batch["step_index"].shape == (3,)


@fuzzed
@given(data=st.data())
def test_damaged_tar_is_indexed_or_named(data, tmp_path):
    source = tmp_path / "out"
    if not source.exists():
        aloha_raw(tmp_path / "in" / "episode_0.hdf5")
        es.pack(tmp_path / "in", source)
    folder = tmp_path / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "shard-000000.tar").write_bytes(data.draw(damaged((source / "shard-000000.tar").read_bytes())))
    index_and_use(folder)


PARTS = st.sampled_from(
    [
        *("ep-0", "ep-000000001", "ep.0", ".", "..", "", "a/b", "/etc", "ep 0", "é", "action", "meta", "x" * 60),
        *("observation.images.top", "000000", "000001", "jpg", "png", "npy", "json", "txt", "cls", "pyd", "tar", "gz"),
    ]
)
SHAPES = st.sampled_from([(), (0,), (5,), (5, 2), (5, 0), (3, 2), (5, 2, 2, 2, 2, 2), (1, 2)])
DTYPES = st.sampled_from(["f4", ">f8", "i8", "?", "c8", "U3", "S2", "M8[s]", "f2", [("a", "f4"), ("b", "i2")]])
CONTENTS = st.one_of(
    st.binary(max_size=40),
    st.builds(lambda shape, dtype: npy(np.zeros(shape, dtype)), SHAPES, DTYPES),
    st.builds(lambda step: jpeg(picture(step)), st.integers(0, 3)),
    st.builds(as_json, JUNK),
    st.just(as_json({"length": 5, "episode_index": 0})),
    damaged(npy(np.zeros((5, 2), "f4"))),
)


@fuzzed
@given(members=st.lists(st.tuples(st.lists(PARTS, min_size=1, max_size=4), CONTENTS), max_size=8), kind=st.data())
def test_tar_of_any_members_is_indexed_or_named(members, kind, tmp_path):
    folder = tmp_path / "fuzzed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    form = kind.draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(folder / "any.tar", "w", format=form) as tar:
        for parts, content in members:
            entry = tarfile.TarInfo(kind.draw(st.sampled_from([".", "/"])).join(parts))
            entry.size = len(content)
            entry.type = kind.draw(
                st.sampled_from([tarfile.REGTYPE] * 8 + [tarfile.SYMTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
            )
            if entry.type != tarfile.REGTYPE:
                entry.size, entry.linkname = 0, "/etc/passwd"
            with contextlib.suppress(ValueError):  # a name that this form of tar has no room for is not written
                tar.addfile(entry, io.BytesIO(content))
    with warnings.catch_warnings():
        index_and_use(folder)
