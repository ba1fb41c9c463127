"""MP4s for tests of packet tables: read through a function that counts, boxes renamed, packets copied."""

import io
from fractions import Fraction

import av
import numpy as np

from epistream.sharding.pictures.mp4_mux import Clip, Packets
from epistream.sharding.pictures.mp4_table import read_mp4_table, stream_of


class Reading:
    """Parts of some bytes, and which ones were asked for."""

    def __init__(self, data):
        self.data, self.parts = data, []

    def __call__(self, offset, size):
        assert 0 <= offset <= offset + size <= len(self.data), "asked for what is not there"
        self.parts.append((offset, size))
        return self.data[offset : offset + size]


def mp4_table_of(data, where="clip"):
    """What the index says."""
    return read_mp4_table(Reading(data), len(data), where)


def stream_in(data, where="clip"):
    """What the first picture says."""
    return stream_of(mp4_table_of(data, where), Reading(data), where)


def demuxed(data):
    """Of each frame in the order of presentation, as FFmpeg demuxes it: time in seconds, place, size, is key frame."""
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        packets.sort(key=lambda packet: packet.pts)
        return [
            (float(packet.pts * packet.time_base), packet.pos, packet.size, packet.is_keyframe) for packet in packets
        ]


def rows_of(table):
    """The same of a table."""
    keys = (table.back == 0).tolist()
    return list(zip(table.time.tolist(), table.offset.tolist(), table.size.tolist(), keys, strict=True))


def copied(parts, path, **options):
    """The videos `parts` one behind the other by FFmpeg's packet copy, each frame a thirtieth of a second."""
    with av.open(str(path), "w", format="mp4", options=options) as target:
        stream, start = None, 0
        for data in parts:
            with av.open(io.BytesIO(data)) as source:
                packets = [packet for packet in source.demux(video=0) if packet.size]
                stream = stream or target.add_stream_from_template(source.streams.video[0], opaque=True)
                tick = packets[0].time_base
                for packet in packets:
                    packet.pts, packet.dts = packet.pts + start, packet.dts + start
                    packet.stream = stream
                    target.mux(packet)
                start += int(Fraction(len(packets), 30) / tick)
    return path.read_bytes()


def cut_places(data, start=0, stop=None, inside=(b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"edts")):
    """Where boxes begin and end."""
    stop = len(data) if stop is None else stop
    while start + 8 <= stop:
        size = int.from_bytes(data[start : start + 4])
        kind = data[start + 4 : start + 8]
        yield from (start, start + 8, start + size)
        if kind in inside:
            yield from cut_places(data, start + (16 if kind == b"stsd" else 8), start + size, inside)
        start += size


def clip_of_packets(stream, fps, packets):
    """A clip of (step, whether a key frame, bytes) of each frame, in the order of decoding."""
    steps, keys, data = zip(*packets, strict=True) if packets else ((), (), ())
    sizes = np.array([len(one) for one in data], np.int64)
    return Clip(stream, fps, Packets(np.array(steps, np.int64), np.array(keys, np.bool_), sizes), data)
