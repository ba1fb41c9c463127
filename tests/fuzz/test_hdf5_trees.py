"""HDF5 files with anything in them, and damaged ones: packing, streaming, looking and drafting end in named errors."""

import contextlib
import shutil
from pathlib import Path

import every_layout
import h5py
import numpy as np
from click.testing import CliRunner
from fuzzing import damaged, fuzzed, only_named_errors
from hypothesis import given
from hypothesis import strategies as st

import epistream as es
from epistream.commands import cli
from epistream.errors import EpistreamError

SHAPES = st.sampled_from(
    [(), (0,), (1,), (5,), (6,), (5, 0), (5, 2), (4, 2), (5, 2, 2, 2, 2, 2), (5, 24, 32, 3), (5, 3, 24, 32)]
)
DTYPES = st.sampled_from(
    [
        *("f4", ">f8", "f2", "i1", "u8", "?", "c16", "S3", "V3"),
        np.dtype([("arm", "f4", (3,)), ("gripper", "i2")]),
        h5py.string_dtype(),
        h5py.vlen_dtype(np.uint8),
        h5py.vlen_dtype(np.float32),
        h5py.ref_dtype,
        h5py.regionref_dtype,
        h5py.enum_dtype({"open": 0, "closed": 1}),
        h5py.opaque_dtype("M8[us]"),
    ]
)
NAMES = st.sampled_from(
    [
        *("0", "317222071234", "task", "é", "a.b", "相机", "X" * 80, "state", "rgb", "top", "timestamp", "joint pos"),
        *(
            "action",
            "actions",
            "episode_9",
            "demo_9",
            "instruction",
            "success",
            "images",
            "mask",
            " ",
            "a/b/c",
            b"\xff\xfe",
        ),
    ]
)
FILTERS = st.sampled_from([{}, {}, {"chunks": True}, {"compression": "gzip"}, {"compression": "lzf", "shuffle": True}])
LINKS = st.sampled_from(
    [
        *(h5py.SoftLink(path) for path in ("/", "/none", "/action", "..", "", "/data")),
        *(h5py.ExternalLink(file, path) for file in ("none.h5", "in.h5", "/etc/passwd", "/dev/zero") for path in "/a"),
    ]
)
ATTRIBUTES = st.sampled_from(
    [
        h5py.Empty("f4"),
        "text",
        b"\xff\xfe",
        1.5,
        float("nan"),
        True,
        np.zeros((3, 3)),
        ["a", "b"],
        '{"lang": "go"}',
        "[" * 500,
    ]
)


def nodes_of(file):
    """What lies in the file itself: HDF5 would open what links lead to for writing, too."""
    found = [file]
    for node in found:
        if isinstance(node, h5py.Group) and len(found) < 200:
            found += [node[name] for name in node if isinstance(node.get(name, getlink=True), h5py.HardLink)]
    return found


def put_dataset(draw, parent, name):
    shape, dtype = draw(SHAPES), draw(DTYPES)
    kind = draw(st.sampled_from(["plain", "plain", "plain", "huge", "empty", "virtual", "external"]))
    if kind == "empty":
        parent[name] = h5py.Empty("f4")
    elif kind == "huge":
        parent.create_dataset(
            name, draw(st.sampled_from([(1 << 34,), (5, 1 << 40), (1 << 20, 1 << 12)])), "f4", chunks=True
        )
    elif kind == "virtual":
        layout = h5py.VirtualLayout((5, 2), "f4")
        layout[:] = h5py.VirtualSource(draw(st.sampled_from(["none.h5", ".", "/etc/passwd"])), "a", (5, 2))
        parent.create_virtual_dataset(name, layout, fillvalue=draw(st.sampled_from([None, 7])))
    elif kind == "external":
        where = draw(st.sampled_from(["none.raw", "/etc/passwd", "../in.raw"]))
        parent.create_dataset(name, (5, 2), "f4", external=[(where, 0, h5py.h5f.UNLIMITED)])
    else:
        filters = draw(FILTERS) if shape and all(shape) else {}
        made = parent.create_dataset(name, shape, dtype, **filters)
        if made.dtype.kind in "fiu" and draw(st.booleans()):
            made[...] = draw(st.sampled_from([0, 1, np.nan if made.dtype.kind == "f" else 2]))


def change(draw, file):
    """One change that anybody's recorder, or nobody's, could have made."""
    what = draw(
        st.sampled_from(["dataset", "dataset", "dataset", "remove", "link", "attribute", "group", "move", "many"])
    )
    nodes = nodes_of(file)
    groups = [node for node in nodes if isinstance(node, h5py.Group)]
    others = [node for node in nodes if node.name not in (None, "/")]
    parent = draw(st.sampled_from(groups))
    name = draw(st.one_of(NAMES, st.sampled_from([node.name.rpartition("/")[2] for node in others] or ["a"])))
    if what == "remove" and others:
        del file[draw(st.sampled_from(others)).name]
        return
    if what == "attribute":
        draw(st.sampled_from(nodes)).attrs[name] = draw(ATTRIBUTES)
        return
    if isinstance(name, str) and parent.get(name, getlink=True) is not None:
        del parent[name]
    if what == "link":
        parent[name] = draw(LINKS)
    elif what == "group":
        parent.require_group(name)
    elif what == "many":
        for number in range(300):
            parent.create_group(f"{name!s}_{number}")
    elif what == "move" and others:
        parent[name] = draw(st.sampled_from(others))
    else:
        put_dataset(draw, parent, name)


def use(path: Path):
    """Whatever a user would do with a folder of one such file."""
    folder = path.parent
    with only_named_errors():
        es.pack(folder, folder.parent / "out", workers=0, overwrite=True)
    with only_named_errors():
        es.pack(folder, folder.parent / "out", workers=0, overwrite=True, skip_bad=True, drop=("action",))
    with only_named_errors():
        for _, batch in zip(
            range(2), es.EpisodeStream(str(folder), batch_size=3, cache="off", split=None), strict=False
        ):
            assert batch["step_index"].shape == (3,)
    for command in (["inspect", str(path)], ["layouts", "detect", str(path)], ["layouts", "draft", str(path)]):
        done = CliRunner().invoke(cli, command)
        assert done.exception is None or isinstance(done.exception, SystemExit | EpistreamError), done.exception
    if done.exit_code == 0:
        own = folder.parent / "own.yaml"
        own.write_text(done.stdout)
        with only_named_errors():
            assert es.EpisodeStream(str(path), layout=own, batch_size=1, split=None).num_windows > 0


def fresh(tmp_path):
    folder = tmp_path / "fuzzed" / "in"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


@fuzzed
@given(data=st.data())
def test_file_with_anything_in_it_is_used_or_named(data, tmp_path):
    folder = fresh(tmp_path)
    path = every_layout.write(data.draw(st.sampled_from(sorted(every_layout.WRITERS))), folder)
    with h5py.File(path, "a") as file:
        for _ in range(data.draw(st.integers(1, 4))):
            with contextlib.suppress(ValueError, OSError, RuntimeError, TypeError):  # h5py itself does not write that
                change(data.draw, file)
    use(path)


@fuzzed
@given(data=st.data())
def test_damaged_file_is_used_or_named(data, tmp_path):
    folder = fresh(tmp_path)
    path = every_layout.write(data.draw(st.sampled_from(sorted(every_layout.WRITERS))), folder)
    content = path.read_bytes()
    # What says where things are lies mostly in front.
    size = data.draw(st.sampled_from([200, 2000, 8000, len(content)]))
    path.write_bytes(data.draw(damaged(content[:size])) + content[size:])
    use(path)
