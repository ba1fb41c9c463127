"""A codec that nobody has heard of: one class in the table, and it is packed, indexed, verified, shown and streamed."""

import shutil
import tarfile
import zlib

import h5py
import numpy as np
import pytest
from hdf5_files import aloha_raw, members

import epistream as es
from epistream.commands.episode_views import episode_picture
from epistream.errors import FormatError, OptionError, PackError
from epistream.sharding.check.inspect import EpisodeFrames, describe
from epistream.sharding.check.verify import verify
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.pictures.codecs import CODECS, Codec
from epistream.sharding.tar.index_tar import index_tar
from epistream.sharding.tar.reindex import reindex

CAMERAS = ("observation.images.angle", "observation.images.top")
LENGTHS = (5, 7)


class Zipped(Codec):
    """Bytes of colour, compressed: height and width in two bytes each, then all pixels."""

    name = "zraw"
    suffixes = (".zraw",)
    library = "numpy"
    ratios = ((100, 0.7),)
    holds = frozenset({("uint8", 3)})

    @staticmethod
    def announced(data, where):
        return "uint8", (int.from_bytes(data[:2], "big"), int.from_bytes(data[2:4], "big"), 3)

    def decode(self, data, out, where):
        try:
            pixels = zlib.decompress(data[4:])
        except zlib.error as error:
            raise FormatError(f"{where}: does not unzip ({error})") from error
        if self.announced(data, where) != (self.dtype, self.shape) or len(pixels) != out.nbytes:
            raise FormatError(f"{where}: {len(pixels)} bytes of pixels, wanted {out.nbytes}")
        out[...] = np.frombuffer(pixels, np.uint8).reshape(self.shape)

    def _encode(self, frame, quality):
        height, width, _ = frame.shape
        return height.to_bytes(2, "big") + width.to_bytes(2, "big") + zlib.compress(frame.tobytes())


@pytest.fixture
def zipped(monkeypatch):
    monkeypatch.setitem(CODECS, Zipped.name, Zipped)
    return Zipped


@pytest.fixture
def files(tmp_path):
    return [aloha_raw(tmp_path / f"episode_{n}.hdf5", length, 40 * n) for n, length in enumerate(LENGTHS)]


@pytest.fixture
def shards(zipped, files, tmp_path):
    es.pack(files, tmp_path / "shards", codec=zipped.name)
    return tmp_path / "shards"


def recorded(files, camera):
    """All frames of one camera by episode."""
    for path in files:
        with h5py.File(path) as file:
            yield file[f"observations/images/{camera.rpartition('.')[2]}"][()]


def test_packed_members_are_what_its_class_makes(shards, files):
    found = dict(members(shards / "shard-000000.tar"))
    for camera in CAMERAS:
        for episode, frames in enumerate(recorded(files, camera)):
            for step, frame in enumerate(frames):
                data = found[f"ep-{episode:09d}.{camera}.{step:06d}.zraw"]
                assert data[:4] + zlib.decompress(data[4:]) == b"\0\x18\0\x20" + frame.tobytes()


def test_tars_are_indexed_again_as_they_were_packed(shards, tmp_path):
    packed = ShardIndex.parse((shards / "shard-000000.index").read_bytes(), "packed")
    again = index_tar(shards / "shard-000000.tar")
    assert again.features == packed.features
    for camera in CAMERAS:
        np.testing.assert_array_equal(again.frame_offset[camera], packed.frame_offset[camera])
        np.testing.assert_array_equal(again.frame_size[camera], packed.frame_size[camera])
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(shards / "shard-000000.tar", bare)
    reindex(str(bare))
    assert es.open_dataset(bare).fingerprint == es.open_dataset(shards).fingerprint


def test_tar_that_says_nothing_of_its_features_is_indexed_by_what_the_frames_announce(shards, tmp_path):
    with tarfile.open(shards / "shard-000000.tar") as tar, tarfile.open(tmp_path / "foreign.tar", "w") as foreign:
        for member in tar:
            if not member.name.endswith("meta.json"):
                foreign.addfile(member, tar.extractfile(member))
    camera = index_tar(tmp_path / "foreign.tar").features[CAMERAS[0]]
    assert (camera.codec, camera.dtype, camera.shape, camera.jpeg_channels) == ("zraw", "uint8", (24, 32, 3), None)


def test_dataset_is_verified_and_a_torn_frame_found(shards):
    assert verify(es.open_dataset(shards)).faults == []
    index = ShardIndex.parse((shards / "shard-000000.index").read_bytes(), "packed")
    with (shards / "shard-000000.tar").open("r+b") as tar:
        tar.seek(int(index.frame_offset[CAMERAS[1]][6]) + 8)
        tar.write(b"torn")
    found = [fault for fault in verify(es.open_dataset(shards)).faults if fault.wanted == "a frame that decodes"]
    assert [fault.member for fault in found] == [f"ep-000000001.{CAMERAS[1]}.000001.zraw"]


def test_dataset_is_described_and_its_frames_shown(shards, files):
    dataset = es.open_dataset(shards)
    described = {feature["name"]: feature["codec"] for feature in describe(dataset)["features"]}
    assert {described[camera] for camera in CAMERAS} == {"zraw"}
    frames = EpisodeFrames(dataset, 1)
    for camera in CAMERAS:
        wanted = list(recorded(files, camera))[1]
        np.testing.assert_array_equal(frames.read(dataset.features[camera], 6), wanted[6])
    assert episode_picture(dataset, 0).width > 0


@pytest.mark.parametrize("decode", ["per_read", "once"])
@pytest.mark.parametrize("size", [None, (12, 16)])
def test_streamed_frames_are_those_of_the_source(shards, files, tmp_path, decode, size):
    es.pack(files, tmp_path / "raw", codec="raw")
    window, cache = es.Window(obs=[-1, 0], action=[0]), es.CacheOptions(directory=str(tmp_path / "cache"))
    options = {"batch_size": 3, "window": window, "image_size": size, "decode": decode, "cache": cache}
    ours = es.StreamingLoader(es.EpisodeStream(shards, **options), num_workers=0, num_threads=0)
    plain = es.StreamingLoader(es.EpisodeStream(tmp_path / "raw", **options), num_workers=0, num_threads=0)
    with ours, plain:
        for _ in range(2):
            for batch, wanted in zip(ours, plain, strict=True):
                for camera in CAMERAS:
                    np.testing.assert_array_equal(batch[camera], wanted[camera])
                    if size is None:
                        episode, step = int(batch["episode_index"][0]), int(batch["step_index"][0])
                        np.testing.assert_array_equal(batch[camera][0, 1], list(recorded(files, camera))[episode][step])
        stats = ours.stats()
    assert (stats.cache.made_fills > 1) == (decode == "once")  # one is the table of the shard's arrays
    assert (stats.decoded.num_decoded > 0) == (decode == "once")


def test_depth_goes_to_a_codec_that_can_hold_it(zipped, tmp_path):
    path = aloha_raw(tmp_path / "episode_0.hdf5")
    with h5py.File(path, "a") as file:
        file["observations/images/depth"] = np.arange(5 * 24 * 32, dtype=np.uint16).reshape(5, 24, 32)
    report = es.pack(path, tmp_path / "shards", codec=zipped.name)
    assert report.features["observation.images.depth"].codec == "png"
    assert report.features[CAMERAS[0]].codec == "zraw"


def test_names_of_codecs_in_messages_are_those_of_the_table(zipped):
    with pytest.raises(OptionError, match="codec: 'avif', wanted jpeg, png, raw, webp, h264 or zraw"):
        es.pack("x.hdf5", "out", codec="avif")
    with pytest.raises(OptionError, match=r"pack\.codec: 'avif', wanted jpeg, png, raw, webp, h264 or zraw"):
        es.load_config(pack={"codec": "avif"})
    assert es.load_config(pack={"codec": "zraw"}).settings.pack.codec == "zraw"


def test_frames_that_depend_on_each_other_are_refused_by_name(shards, files, tmp_path, monkeypatch):
    dataset = es.open_dataset(shards)
    monkeypatch.setattr(Zipped, "frames_are_independent", False)
    wanted = f"{CAMERAS[0]}: zraw frames depend on each other, wanted frames that decode alone"
    with pytest.raises(FormatError, match=wanted):
        next(iter(es.EpisodeStream(shards, cache=es.CacheOptions(directory=str(tmp_path / "cache")))))
    with pytest.raises(FormatError, match=wanted):
        EpisodeFrames(dataset, 0).read(dataset.features[CAMERAS[0]], 0)
    with pytest.raises(PackError, match=wanted):
        es.pack(files, tmp_path / "again", codec="zraw")
    assert any("zraw frames depend on each other" in fault.found for fault in verify(es.open_dataset(shards)).faults)
