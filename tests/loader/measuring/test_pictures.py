"""What pictures cost in other forms: measured on frames of a dataset, and compared with what encoders give alone."""

import numpy as np
import pytest
import simplejpeg

import epistream as es
from epistream.errors import OptionError
from epistream.loader.measuring import pictures
from epistream.loader.measuring.pictures import compare_pictures
from epistream.sharding.pictures.video_encoder import VideoEncoder, VideoQuality


def psnr(squared_error):
    return 10 * np.log10(255**2 / squared_error)


@pytest.fixture(scope="module")
def raw_frames(example_data):
    """The source, the stream of one camera, and the frames of its first episode's middle."""
    source = str(example_data / "robomimic" / "scripted_lift.hdf5")
    names = [name for name, f in es.open_dataset(source).features.items() if f.kind == "frames"]
    stream = es.EpisodeStream(source, features=names[:1], batch_size=2, shuffle=False, split=None)
    frames = np.concatenate([np.asarray(batch[names[0]].numpy())[:, 0] for batch in stream])
    return source, names[0], stream, frames


def test_forms_of_a_raw_camera_are_what_their_encoders_give(raw_frames):
    _, camera, stream, frames = raw_frames
    job = stream.job
    lengths = job.dataset.episode_length
    assert (lengths <= 60).all()  # all of an episode is measured
    stored_bytes = int(job.dataset.shard_bytes.sum())
    (stored, jpeg, video), missing = compare_pictures(job, job, stored_bytes, 60.0)
    assert missing is None
    assert stored.name == "as stored (raw)"
    assert (stored.bytes_per_frame, stored.psnr_db, stored.group_steps) == (frames[0].nbytes, None, None)
    measured = np.unique(np.linspace(0, len(lengths) - 1, min(3, len(lengths))).round().astype(int))
    ends = np.cumsum(lengths)
    chosen = np.concatenate([frames[ends[each] - lengths[each] : ends[each]] for each in measured])
    encoded = [simplejpeg.encode_jpeg(frame, 95, colorspace="RGB", colorsubsampling="420") for frame in chosen]
    assert jpeg.num_frames == len(chosen)
    assert jpeg.bytes_per_frame == pytest.approx(np.mean([len(data) for data in encoded]))
    decoded = np.stack([simplejpeg.decode_jpeg(data) for data in encoded])
    errors = ((decoded.astype(np.float64) - chosen) ** 2).mean(axis=(1, 2, 3))
    assert jpeg.psnr_db == pytest.approx(psnr(errors.mean()), abs=0.01)
    assert jpeg.worst_psnr_db == pytest.approx(psnr(errors.max()), abs=0.01)
    grown = (jpeg.bytes_per_frame - frames[0].nbytes) * lengths.sum()
    assert jpeg.dataset_bytes == pytest.approx(stored_bytes + grown, abs=1)
    sizes = 0
    for each in measured:
        encoder = VideoEncoder(camera, frames[0].shape, job.features[camera].fps, VideoQuality())
        for frame in frames[ends[each] - lengths[each] : ends[each]]:
            encoder.add(frame)
        sizes += int(encoder.finish().table.size.sum())
    assert video.bytes_per_frame == pytest.approx(sizes / len(chosen))
    assert (video.is_video, video.group_steps) == (True, 30)
    assert 30 < video.worst_psnr_db <= video.psnr_db < 50
    assert min(video.encode_frames_per_s, jpeg.encode_frames_per_s, video.decode_ms, stored.decode_ms) > 0


def test_windows_of_several_steps_look_at_short_groups_too_and_at_the_size_that_is_streamed(raw_frames):
    source, camera, _, _ = raw_frames
    window = es.Window(obs=range(-1, 1))
    stream = es.EpisodeStream(source, features=[camera], window=window, image_size=(32, 48))
    rows, _ = compare_pictures(stream.job, stream.job, 1 << 30, 0.0)
    assert [(row.group_steps, row.is_video) for row in rows] == [(None, False), (None, False), (30, True), (8, True)]
    assert rows[1].bytes_per_frame < 32 * 48 * 3 < rows[0].bytes_per_frame


def test_video_is_compared_with_jpeg_alone(raw_frames, tmp_path):
    source, camera, _, _ = raw_frames
    es.pack(source, tmp_path / "out", codec="h264", gop=4, cameras=[camera])
    stream = es.EpisodeStream(tmp_path / "out", features=[camera])
    rows, _ = compare_pictures(stream.job, stream.job, 1 << 30, 0.0)
    assert [(row.name, row.group_steps) for row in rows] == [("as stored (h264)", 4), ("JPEG", None)]
    assert rows[0].bytes_per_frame < rows[1].bytes_per_frame


def test_nothing_is_compared_without_colour_cameras(raw_frames):
    stream = es.EpisodeStream(raw_frames[0], features=["action"])
    assert compare_pictures(stream.job, stream.job, 1 << 30, 1.0) == ([], None)


def test_without_pyav_pictures_alone_are_compared_and_a_line_says_what_is_missing(raw_frames, monkeypatch):
    def missing():
        raise OptionError("video: no module, wanted PyAV.")

    monkeypatch.setattr(pictures, "pyav", missing)
    stream = raw_frames[2]
    rows, said = compare_pictures(stream.job, stream.job, 1 << 30, 0.0)
    assert [row.name for row in rows] == ["as stored (raw)", "JPEG"]
    assert "pip install 'epistream[video]'" in said
