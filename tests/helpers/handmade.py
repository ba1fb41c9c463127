"""Small shards made with tarfile and Pillow alone, so that what is read can be compared with what was put in."""

import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 32


def picture(episode, step):
    """A picture that differs from every other: a gradient with a bright column that moves."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    image = np.stack([rows * 8, columns * 6, np.full_like(rows, 40 * episode % 256)], axis=-1).astype(np.uint8)
    image[:, step % WIDTH] = 255
    return image


def actions(episode, length):
    return (np.arange(length * 3).reshape(length, 3) / 8 + 100 * episode).astype(np.float32)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def encoded(image, codec):
    file = io.BytesIO()
    Image.fromarray(image).save(file, codec, **({"quality": 90} if codec == "jpeg" else {}))
    return file.getvalue()


def members(episode, length, codec="jpeg", key=None, meta=None):
    """(name, bytes) of one episode: one camera, one array, and a meta.json unless `meta` is None."""
    key = key or f"ep-{episode:09d}"
    result = [] if meta is None else [(f"{key}.meta.json", json.dumps({"length": length, **meta}).encode())]
    result.append((f"{key}.action.npy", npy(actions(episode, length))))
    if codec == "raw":
        frames = np.stack([picture(episode, step) for step in range(length)])
        return [*result, (f"{key}.observation.images.top.npy", npy(frames))]
    suffix = {"jpeg": "jpg", "png": "png"}[codec]
    return result + [
        (f"{key}.observation.images.top.{step:06d}.{suffix}", encoded(picture(episode, step), codec))
        for step in range(length)
    ]


def write_tar(path, pairs, format=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return Path(path)


def places(path):
    """name -> (offset, size), by tarfile."""
    with tarfile.open(path) as tar:
        return {info.name: (info.offset_data, info.size) for info in tar}


def write_dataset(folder, lengths=((5, 3), (4,)), codec="jpeg", metas=None):
    """A whole dataset: one shard for each entry of `lengths`."""
    from epistream.sharding.tar.index_tar import index_tar

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    indexes, episode = {}, 0
    for shard, in_shard in enumerate(lengths):
        pairs = []
        for length in in_shard:
            meta = {"episode_index": episode, **((metas or {}).get(episode, {}))}
            pairs += members(episode, length, codec, meta=meta)
            episode += 1
        path = write_tar(folder / f"shard-{shard:06d}.tar", pairs)
        index = index_tar(path)
        data = index.to_bytes()
        path.with_suffix(".index").write_bytes(data)
        indexes[path.name] = (index, data)
    publish(folder, indexes)
    return folder


def publish(folder, indexes):
    """Write the manifest of {name: (index, its bytes)}."""
    from epistream.sharding.manifest.manifest_builder import ManifestBuilder
    from epistream.sharding.manifest.manifest_writing import write_manifest

    builder = ManifestBuilder(next(iter(indexes.values()))[0].features, None)
    for index, data in indexes.values():
        builder.add_shard(index, data)
    write_manifest(builder.build(), str(folder))


# Tars with one sample a step.


def state(episode, step):
    return [episode + step / 4, float(step), -0.5]


def action_row(episode, step):
    return (np.arange(14) + 100 * episode + step).astype(np.float32)


def sample(episode, step, key="ep{episode:03d}_{step:05d}", codec="jpeg"):
    """(name, bytes) of one step: a camera, a row of 14, JSON with three numbers and an instruction."""
    key = key.format(episode=episode, step=step)
    described = {
        "episode_index": episode,
        "frame_index": step,
        "state": state(episode, step),
        "task": f"task {episode % 2}",
    }
    suffix = {"jpeg": "jpg", "png": "png", "webp": "webp"}.get(codec)
    picture_member = (f"{key}.top.npy", npy(picture(episode, step)))
    if suffix:
        picture_member = (f"{key}.top.{suffix}", encoded(picture(episode, step), codec))
    return [
        picture_member,
        (f"{key}.action.npy", npy(action_row(episode, step))),
        (f"{key}.json", json.dumps(described).encode()),
    ]


def samples(lengths, **changes):
    """One list of members a sample, episode after episode."""
    return [sample(e, s, **changes) for e, length in enumerate(lengths) for s in range(length)]


def write_steps(path, chosen):
    return write_tar(path, [member for members in chosen for member in members])


def independent(paths, key=r"ep(\d+)_(\d+)"):
    """{(episode, step): {field: value}}, by tarfile, numpy, json and Pillow."""
    found = {}
    for path in paths:
        with tarfile.open(path) as tar:
            for info in tar:
                name, _, field = info.name.partition(".")
                episode, step = map(int, re.fullmatch(key, name).groups())
                data = tar.extractfile(info).read()
                if field.endswith("npy"):
                    value = np.load(io.BytesIO(data))
                elif field.endswith("json"):
                    value = json.loads(data)
                else:
                    value = np.asarray(Image.open(io.BytesIO(data)))
                found.setdefault((episode, step), {})[field] = value
    return found
