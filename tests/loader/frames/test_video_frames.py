"""Windows of cameras that are stored as video: bit for bit what PyAV makes of the same MP4 in order."""

import functools
import http.server
import io
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from counting.videos import (
    CAMERAS,
    HEIGHT,
    WIDTH,
    counted,
    counter_of,
    decoded,
    encoded,
    number_of,
    with_b_frames,
    write_episodes,
    write_shard,
)
from handmade import publish
from web.serving import LoopbackServer, running

import epistream as es
from epistream.cache.source.local import FileBlob, MappedBlob
from epistream.errors import EpistreamError, FormatError, SourceChangedError
from epistream.loader.frames.frame_decoder import FrameDecoder
from epistream.loader.frames.frames import draw_frames
from epistream.loader.frames.video_frames import decode_video
from epistream.loader.shards.cold_start import _ranges
from epistream.sharding.format.features import Feature, codec_of
from epistream.sharding.format.index import ShardIndex
from epistream.sharding.pictures import video
from epistream.sharding.pictures.resizing import resized

LENGTHS = (41, 37, 41)  # 17 batches of 7
OBS = (-9, 0, 3)
WAYS = {
    "two threads": {"num_workers": 0, "num_threads": 2},
    "two processes": {"num_workers": 2},
    "spawned processes": {"num_workers": 2, "start_method": "spawn"},
}


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    return write_episodes(tmp_path_factory.mktemp("episodes"), LENGTHS)


@pytest.fixture(scope="module")
def packed(episodes, tmp_path_factory):
    """Packs with groups of so many frames, a shard an episode, once; and what PyAV decodes of it."""

    @functools.cache
    def pack(gop):
        out = tmp_path_factory.mktemp(f"gop{gop}") / "shards"
        es.pack(episodes, out, codec="h264", gop=gop, shard_size="64KiB")
        assert len(list(out.glob("*.tar"))) == len(LENGTHS)
        return out, decoded(out)

    return pack


def stream_of(shards, **options):
    window = es.Window(obs=OBS, action=[0], pad=options.pop("pad", "edge"))
    return es.EpisodeStream(shards, **{"batch_size": 7, "window": window, "decode": "per_read", **options})


def windows_of(batch):
    return list(zip(batch["episode_index"].tolist(), batch["step_index"].tolist(), strict=True))


def assert_right(batch, pictures, size=None, pad="edge", obs=OBS):
    for row, (episode, step) in enumerate(windows_of(batch)):
        for camera in CAMERAS:
            frames = pictures[episode, camera]
            for place, offset in enumerate(obs):
                at = min(max(step + offset, 0), len(frames) - 1)
                found, wanted = np.asarray(batch[camera][row, place]), frames[at]
                if pad == "zero" and at != step + offset:
                    wanted = np.zeros_like(wanted)
                elif size is None:
                    assert counter_of(found) == number_of(camera, episode, at)
                else:
                    wanted = resized(wanted, (*size, 3))
                np.testing.assert_array_equal(found, wanted, f"{camera}, episode {episode}, step {at}")


def assert_epochs(loader, pictures, epochs=1, **shown):
    for _ in range(epochs):
        seen = []
        for batch in loader:
            assert_right(batch, pictures, **shown)
            seen += windows_of(batch)
        assert sorted(seen) == [(episode, step) for episode, length in enumerate(LENGTHS) for step in range(length)]


IN_PLACE, MAPPED = "auto", "shm"


@pytest.mark.parametrize(
    ("gop", "decode", "mode"),
    [
        *((1, "per_read", IN_PLACE), (1, "once", MAPPED), (2, "per_read", MAPPED), (2, "once", IN_PLACE)),
        *((8, "per_read", IN_PLACE), (8, "once", MAPPED), (30, "per_read", MAPPED), (30, "once", IN_PLACE)),
    ],
)
def test_windows_are_what_pyav_decodes_in_order(packed, tmp_path, gop, decode, mode):
    shards, pictures = packed(gop)
    cache = es.CacheOptions(mode=mode, directory=str(tmp_path / "cache"))
    stream = stream_of(shards, decode=decode, cache=cache)
    with es.StreamingLoader(stream, num_workers=0, num_threads=0) as loader:
        assert_epochs(loader, pictures, epochs=2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("decode", ["per_read", "once"])
def test_windows_are_the_same_in_every_way_of_running(packed, tmp_path, way, decode):
    shards, pictures = packed(8)
    stream = stream_of(shards, decode=decode, cache=es.CacheOptions(directory=str(tmp_path / "cache")))
    with es.StreamingLoader(stream, **WAYS[way]) as loader:
        assert_epochs(loader, pictures, epochs=2)


@pytest.mark.parametrize("decode", ["per_read", "once"])
@pytest.mark.parametrize("size", [(12, 16), (40, 31)])
def test_pictures_are_resized_as_those_of_other_codecs(packed, tmp_path, decode, size):
    shards, pictures = packed(8)
    cache = es.CacheOptions(directory=str(tmp_path / "cache"))
    stream = stream_of(shards, decode=decode, image_size=size, cache=cache)
    with es.StreamingLoader(stream, num_workers=0, num_threads=0) as loader:
        assert_epochs(loader, pictures, size=size)


@pytest.mark.parametrize("decode", ["per_read", "once"])
def test_padding_with_zeros_decodes_no_frame_for_it(packed, tmp_path, decode):
    shards, pictures = packed(8)
    stream = stream_of(shards, decode=decode, pad="zero", cache=es.CacheOptions(directory=str(tmp_path / "cache")))
    with es.StreamingLoader(stream, num_workers=0, num_threads=0) as loader:
        assert_epochs(loader, pictures, pad="zero")


def test_stream_goes_on_in_the_middle_of_an_epoch_with_the_same_pictures(packed):
    shards, pictures = packed(30)
    with es.StreamingLoader(stream_of(shards), num_workers=0, num_threads=0) as loader:
        batches = iter(loader)
        for _ in range(5):
            next(batches)
        state = loader.state_dict()
        expected = next(batches)
    with es.StreamingLoader(stream_of(shards), num_workers=0, num_threads=0) as loader:
        loader.load_state_dict(state)
        batch = next(iter(loader))
    assert_right(batch, pictures)
    assert batch["step_index"].tolist() == expected["step_index"].tolist()


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Serves files by ranges."""

    def log_message(self, *arguments):
        pass

    def send_head(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return None
        data = path.read_bytes()
        start, stop = 0, len(data)
        if given := self.headers.get("Range"):
            first, _, last = given.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1 if last else len(data), len(data))
        self.send_response(206 if given else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(stop - start))
        if given:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
        self.end_headers()
        return io.BytesIO(data[start:stop])


@pytest.mark.parametrize("gop", [8, 30])
@pytest.mark.parametrize("mode", ["shm", "off"])
def test_cold_start_over_the_network_reads_whole_runs_by_ranges(packed, tmp_path, gop, mode):
    shards, pictures = packed(gop)
    handler = functools.partial(RangeHandler, directory=str(shards))
    with running(LoopbackServer(handler)) as url:
        cache = es.CacheOptions(mode=mode, directory=str(tmp_path / "cache"))
        stream = stream_of(url, cache=cache)
        with es.StreamingLoader(stream, num_workers=0, num_threads=1) as loader:
            assert_epochs(loader, pictures, epochs=2)
            assert loader.stats().cache.bytes_ranged > 0


def test_cold_start_asks_for_each_run_from_its_key_frame_on(tmp_path):
    _, index = opened(write_shard(tmp_path / "s", [encoded(range(20), 8), encoded(range(100, 120), 8)]))
    steps = {CAMERAS[0]: np.array([[2, 10], [10, 19], [1, 3]]), "action": np.zeros((3, 1), np.int64)}
    wanted = SimpleNamespace(episodes=np.array([0, 0, 1]), steps=steps)
    [(starts, sizes), _] = _ranges(index, index.features, wanted)
    rows = [0, 1, 2, 8, 9, 10, 16, 17, 18, 19, 20, 21, 22, 23]
    assert starts.tolist() == index.frame_offset[CAMERAS[0]][rows].tolist()
    assert sizes.tolist() == index.frame_size[CAMERAS[0]][rows].tolist()


def opened(folder, kind="file"):
    index = ShardIndex.parse((folder / "shard-000000.index").read_bytes(), "index")
    data = (folder / "shard-000000.tar").read_bytes()
    tar = FileBlob(folder / "shard-000000.tar", len(data)) if kind == "file" else MappedBlob(memoryview(data), "s")
    return tar, index


def drawn(tar, index, needed, places, decoder=None):
    feature = index.features[CAMERAS[0]]
    out = np.zeros((max(places) + 1, HEIGHT, WIDTH, 3), np.uint8)
    decoder = decoder or FrameDecoder(feature, feature.shape)
    draw_frames(tar, index, decoder, np.asarray(needed), out, np.asarray(places))
    return out


@pytest.mark.parametrize("kind", ["file", "mapped"])
@pytest.mark.parametrize("gop", [5, 12])
def test_frames_that_are_not_decoded_in_order_come_as_they_are_shown(tmp_path, kind, gop):
    videos = [with_b_frames(range(100 * episode, 100 * episode + 25), gop) for episode in range(3)]
    index_folder = write_shard(tmp_path / "b", videos)
    tar, index = opened(index_folder, kind)
    offsets = index.frame_offset[CAMERAS[0]][:25].astype(np.int64)
    assert (np.diff(offsets) < 0).any(), "B-frames"
    pictures = decoded(index_folder)
    rows = np.random.default_rng(gop).permutation(75)
    decoder = FrameDecoder(index.features[CAMERAS[0]], (HEIGHT, WIDTH, 3))
    for needed in (rows, rows[:9], rows[9:11], rows[40:41], np.array([74, 0, 74, 3])):
        out = drawn(tar, index, needed, range(len(needed)), decoder)
        for picture, row in zip(out, needed.tolist(), strict=True):
            episode, step = divmod(row, 25)
            assert counter_of(picture) == 100 * episode + step
            np.testing.assert_array_equal(picture, pictures[episode, CAMERAS[0]][step])


def test_each_group_is_decoded_once_a_draw_and_no_further_than_needed(tmp_path, monkeypatch):
    tar, index = opened(write_shard(tmp_path / "s", [encoded(range(20), 8), encoded(range(100, 120), 8)]))
    fed = []
    make = FrameDecoder.pictures

    def count(self, stream, packets, wanted, where):
        packets = list(packets)
        fed.append([step for step, _ in packets])
        return make(self, stream, [(step, bytes(data)) for step, data in packets], wanted, where)

    monkeypatch.setattr(FrameDecoder, "pictures", count)
    tar = MappedBlob(memoryview((tmp_path / "s" / "shard-000000.tar").read_bytes()), "s")
    needed = [33, 2, 9, 5, 2, 38, 33, 16]
    out = drawn(tar, index, needed, range(8))
    assert [counter_of(picture) for picture in out] == [113, 2, 9, 5, 2, 118, 113, 16]
    assert fed == [[0, 1, 2, 3, 4, 5], [8, 9], [16], [8, 9, 10, 11, 12, 13], [16, 17, 18]]


def test_streams_of_several_recordings_take_turns(tmp_path, monkeypatch):
    videos = [encoded(range(20), 8), with_b_frames(range(100, 120), 8), encoded(range(200, 220), 8)]
    tar, index = opened(write_shard(tmp_path / "s", videos))
    assert len(index.videos[CAMERAS[0]].streams) == 2
    decoder = FrameDecoder(index.features[CAMERAS[0]], (HEIGHT, WIDTH, 3))
    made = Counter()
    wrapped = video.VideoDecoder.__init__

    def init(self, *arguments, **options):
        made.update("n")
        wrapped(self, *arguments, **options)

    monkeypatch.setattr(video.VideoDecoder, "__init__", init)
    for _ in range(3):
        rows = np.random.default_rng(0).permutation(60)
        out = drawn(tar, index, rows, range(60), decoder)
        assert [counter_of(p) for p in out] == [100 * (row // 20) + row % 20 for row in rows.tolist()]
    assert made["n"] == 2, "one decoder for each stream"


def test_needed_rows_are_put_once_in_any_order_they_were_asked_for(tmp_path):
    tar, index = opened(write_shard(tmp_path / "s", [encoded(range(20), 8)]))
    feature = index.features[CAMERAS[0]]
    put = {}
    decoder = FrameDecoder(feature, (12, 16, 3))
    decode_video(tar, index, decoder, [19, 3, 3, 7, 0], lambda row, picture: put.setdefault(row, picture.copy()))
    assert sorted(put) == [0, 3, 7, 19]
    assert {picture.shape for picture in put.values()} == {(12, 16, 3)}
    assert not decoder.is_copy
    assert decoder.is_video
    decode_video(tar, index, decoder, [], put.setdefault)


def test_cameras_of_videos_and_of_pictures_are_read_side_by_side(tmp_path):
    jpeg = Feature(CAMERAS[1], "frames", "uint8", (HEIGHT, WIDTH, 3), codec="jpeg", jpeg_channels="rgb")

    def pictures(length):
        return (codec_of(jpeg).encode(counted(1000 + step)) for step in range(length))

    folder = write_shard(tmp_path / "s", [encoded(range(20), 8), encoded(range(20), 4)], extra=(jpeg, pictures))
    data = (folder / "shard-000000.index").read_bytes()
    publish(folder, {"shard-000000.tar": (ShardIndex.parse(data, "index"), data)})
    for decode in ("per_read", "once"):
        cache = es.CacheOptions(directory=str(tmp_path / "cache"))
        stream = es.EpisodeStream(
            folder, batch_size=4, window=es.Window(obs=[-2, 0], action=[0]), decode=decode, cache=cache
        )
        with es.StreamingLoader(stream, num_workers=0, num_threads=0) as loader:
            for _ in range(2):
                for batch in loader:
                    for row, step in enumerate(batch["step_index"].tolist()):
                        for place, at in enumerate((max(0, step - 2), step)):
                            assert counter_of(np.asarray(batch[CAMERAS[0]][row, place])) == at
                            assert counter_of(np.asarray(batch[CAMERAS[1]][row, place])) == 1000 + at


@pytest.fixture
def torn(packed, tmp_path):
    """Shards of groups of 8, of which one packet of episode 1, step 20 is overwritten."""
    shards = shutil.copytree(packed(8)[0], tmp_path / "torn")
    index = ShardIndex.parse((shards / "shard-000001.index").read_bytes(), "index")
    with (shards / "shard-000001.tar").open("r+b") as file:
        file.seek(int(index.frame_offset[CAMERAS[1]][20]))
        file.write(bytes(int(index.frame_size[CAMERAS[1]][20])))
    return shards


@pytest.mark.parametrize("decode", ["per_read", "once"])
@pytest.mark.parametrize("way", [{"num_workers": 0, "num_threads": 0}, {"num_workers": 2}])
def test_torn_packet_is_told_with_shard_episode_camera_and_step(torn, tmp_path, decode, way):
    cache = es.CacheOptions(directory=str(tmp_path / "cache"))
    stream = stream_of(torn, decode=decode, cache=cache, shuffle=False)
    with es.StreamingLoader(stream, **way) as loader, pytest.raises(EpistreamError) as caught:
        list(loader)
    assert f"shard-000001.tar, ep-000000001.{CAMERAS[1]}: frame 20 " in str(caught.value)


@pytest.mark.parametrize("decode", ["per_read", "once"])
def test_torn_packet_harms_no_frame_that_does_not_need_it(torn, packed, tmp_path, decode):
    pictures = packed(8)[1]
    cache = es.CacheOptions(directory=str(tmp_path / "cache"))
    window = es.Window(obs=[0], action=[0])
    stream = es.EpisodeStream(torn, batch_size=1, window=window, shuffle=False, decode=decode, cache=cache)
    batches = iter(stream)
    for _ in range(LENGTHS[0] + 20):  # as far as step 19 of episode 1, in the group of the torn one
        assert_right(next(batches), pictures, obs=[0])
    with pytest.raises(FormatError, match="frame 20 "):
        next(batches)


@pytest.mark.parametrize("decode", ["per_read", "once"])
@pytest.mark.parametrize("way", [{"num_workers": 0, "num_threads": 0}, {"num_workers": 2}])
def test_shard_with_a_torn_packet_is_skipped_if_that_is_wished(torn, packed, tmp_path, decode, way):
    pictures = packed(8)[1]
    cache = es.CacheOptions(directory=str(tmp_path / "cache"))
    stream = stream_of(torn, decode=decode, cache=cache, on_bad="skip", order=es.OrderOptions(lanes=1))
    num_repeats = 0
    with es.StreamingLoader(stream, **way) as loader:
        for batch in loader:
            assert_right(batch, pictures)
            num_repeats += int(batch["is_repeat"].sum())
            assert not (np.asarray(batch["episode_index"]) == 1)[np.asarray(batch["is_repeat"])].any()
    assert num_repeats > 0


def test_file_that_is_written_to_is_told_and_not_called_torn(tmp_path):
    tar, index = opened(write_shard(tmp_path / "s", [encoded(range(20), 8)]))
    path = tmp_path / "s" / "shard-000000.tar"
    data = path.read_bytes()
    path.write_bytes(bytes(len(data)))
    with pytest.raises(SourceChangedError):
        drawn(tar, index, [3], [0])


def test_decoder_is_whole_again_after_a_torn_packet(torn, packed):
    pictures = packed(8)[1]
    index = ShardIndex.parse((torn / "shard-000001.index").read_bytes(), "index")
    feature = index.features[CAMERAS[1]]
    tar = FileBlob(torn / "shard-000001.tar", (torn / "shard-000001.tar").stat().st_size)
    decoder = FrameDecoder(feature, feature.shape)
    for _ in range(2):
        with pytest.raises(FormatError, match="frame 20 "):
            decode_video(tar, index, decoder, [22], lambda row, picture: None)
        decode_video(
            tar,
            index,
            decoder,
            [3, 19, 25],
            lambda row, picture: np.testing.assert_array_equal(picture, pictures[1, CAMERAS[1]][row]),
        )
