"""What stands in ``meta/``: episodes with their statistics, tasks, and the description of it all."""

import json
from collections.abc import Collection, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

from epistream.sharding.files.arrow import arrow_module as pyarrow
from epistream.sharding.lerobot_out.jobs import Job
from epistream.sharding.lerobot_out.known_facts import KnownFacts, statistics_of
from epistream.sharding.lerobot_out.layout import DATA_PATHS, ROWS, VIDEO_PATHS, Layout, place_of
from epistream.sharding.lerobot_out.model import DERIVED, OutFeature, Statistics
from epistream.sharding.lerobot_out.parquet import (
    ParquetFile,
    episode_columns,
    tasks_table,
    value_type,
    writing,
)
from epistream.sharding.lerobot_out.statistics import QUANTILES, merge_all
from epistream.sharding.lerobot_out.work_folder import INFO
from epistream.sharding.pictures.depth import lerobot_depth
from epistream.sharding.pictures.video import VideoStream

_EPISODES = "meta/episodes/chunk-{:03d}/file-{:03d}.parquet"
# Episodes of a group of rows: what is held at once.
_GROUP = 1000


def write_metadata(job: Job, layout: Layout) -> None:
    """Write all of ``meta/``; `INFO` last: from then on there is a data set."""
    write = _write_3_0 if job.options.version == "3.0" else _write_2_1
    write(job, layout)
    for name, data in job.source.meta_files.items():
        job.folder.write(f"meta/{name}", data)
    job.folder.write(INFO, _json(info_of(job)))


def _json(value: object) -> bytes:
    return json.dumps(value, indent=4).encode()


def tasks_of(job: Job) -> list[str]:
    """Tasks by number; where the source has none, there is one without a text: LeRobot has no step without a task."""
    return list(job.source.tasks) or [""]


Told = tuple[int, Mapping[str, Any], dict[str, Statistics]]


def _episodes(job: Job, without_quantiles: Collection[str] = ()) -> Iterator[Told]:
    """Number, facts, and statistics by feature of each episode."""
    known = KnownFacts(job)
    names = [*(feature.name for feature in job.source.features), *DERIVED]
    for number in range(job.num_episodes):
        facts = known.of(number)
        found = statistics_of(facts)
        found |= {camera.name: statistics_of(known.of_camera(camera, number)) for camera in job.cameras}
        for name in without_quantiles:
            found[name] = {key: value for key, value in found[name].items() if key not in QUANTILES}
        yield number, facts, {name: found[name] for name in names if name in found}


def _write_3_0(job: Job, layout: Layout) -> None:
    total = merge_all(_write_episodes(job, layout))
    with job.folder.new_file("meta/tasks.parquet") as path, writing(path):
        pyarrow("pyarrow.parquet").write_table(tasks_table(tasks_of(job)), path)
    plain = {name: {key: value.tolist() for key, value in values.items()} for name, values in total.items()}
    job.folder.write("meta/stats.json", _json(plain))


def _write_episodes(job: Job, layout: Layout) -> Iterator[dict[str, Statistics]]:
    """Write `meta/episodes` group by group; gives the statistics on as they come by."""
    tasks = tasks_of(job)
    most = job.options.data_files_size_in_mb * (1 << 20)
    rest = _episodes(job, layout.without_quantiles)
    file = 0
    group = list(islice(rest, _GROUP))
    while group:
        place = place_of(job, file)
        with job.folder.new_file(_EPISODES.format(*place)) as path:
            rows = [_row(job, layout, tasks, place, *one) for one in group]
            schema = pyarrow().schema([(name, value_type(value)) for name, value in rows[0].items()])
            with ParquetFile(path, schema) as out:
                while True:
                    out.write(episode_columns(rows, schema))
                    yield from (found for _, _, found in group)
                    group = list(islice(rest, _GROUP))
                    if not group or out.num_bytes >= most:
                        break
                    rows = [_row(job, layout, tasks, place, *one) for one in group]
        file += 1


def _row(
    job: Job,
    layout: Layout,
    tasks: list[str],
    place: tuple[int, int],
    number: int,
    facts: Mapping[str, Any],
    statistics: Mapping[str, Statistics],
) -> dict[str, Any]:
    """What `meta/episodes` says of an episode; a float is a time, an integer a number, whatever its value."""
    length = job.length(number)
    row: dict[str, Any] = {
        "episode_index": number,
        "tasks": [tasks[task] for task in facts["tasks"]],
        "length": length,
    }
    row["data/chunk_index"], row["data/file_index"] = place_of(job, layout.placings[ROWS].file[number])
    row["dataset_from_index"] = job.first_rows[number]
    row["dataset_to_index"] = job.first_rows[number] + length
    for camera in job.videos:
        placing, prefix = layout.placings[camera.name], f"videos/{camera.name}"
        row[f"{prefix}/chunk_index"], row[f"{prefix}/file_index"] = place_of(job, placing.file[number])
        row[f"{prefix}/from_timestamp"] = float(placing.step[number] / job.rate)
        row[f"{prefix}/to_timestamp"] = float((placing.step[number] + length) / job.rate)
    for name, values in statistics.items():
        row |= {f"stats/{name}/{key}": value for key, value in values.items()}
    row["meta/episodes/chunk_index"], row["meta/episodes/file_index"] = place
    return row


def _write_2_1(job: Job, layout: Layout) -> None:
    tasks = tasks_of(job)
    _write_lines(job, "meta/tasks.jsonl", ({"task_index": number, "task": text} for number, text in enumerate(tasks)))
    known = KnownFacts(job)
    episodes = (
        {
            "episode_index": number,
            "tasks": [tasks[task] for task in known.of(number)["tasks"]],
            "length": job.length(number),
        }
        for number in range(job.num_episodes)
    )
    _write_lines(job, "meta/episodes.jsonl", episodes)
    statistics = (
        {
            "episode_index": number,
            "stats": {name: {key: value.tolist() for key, value in one.items()} for name, one in found.items()},
        }
        for number, _, found in _episodes(job)
    )
    _write_lines(job, "meta/episodes_stats.jsonl", statistics)


def _write_lines(job: Job, name: str, lines: Iterator[Mapping[str, Any]]) -> None:
    with job.folder.new_file(name) as path, writing(path), path.open("w", encoding="ascii") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def info_of(job: Job) -> dict[str, Any]:
    """What ``meta/info.json`` says."""
    source, options = job.source, job.options
    info: dict[str, Any] = {
        "codebase_version": f"v{options.version}",
        "robot_type": source.robot_type,
        "total_episodes": job.num_episodes,
        "total_frames": int(np.sum(source.lengths)),
        "total_tasks": len(tasks_of(job)),
    }
    if options.version == "2.1":
        info["total_videos"] = job.num_episodes * len(job.videos)
        info["total_chunks"] = -(-job.num_episodes // options.chunks_size)
        info["chunks_size"] = options.chunks_size
    else:
        info["chunks_size"] = options.chunks_size
        info["data_files_size_in_mb"] = _number(options.data_files_size_in_mb)
        info["video_files_size_in_mb"] = _number(options.video_files_size_in_mb)
    info["fps"] = _number(source.fps)
    info["splits"] = {name: f"{first}:{stop}" for name, (first, stop) in source.splits.items()}
    info["data_path"] = DATA_PATHS[options.version]
    info["video_path"] = VIDEO_PATHS[options.version] if job.videos else None
    info |= {name: value for name, value in source.said.items() if name not in info}
    info["features"] = {feature.name: _described(job, feature) for feature in source.features}
    info["features"] |= {name: {"dtype": dtype, "shape": [1], "names": None} for name, dtype in DERIVED.items()}
    return info


def _number(value: float) -> float:
    """As JSON has it: LeRobot's readers expect a whole number of steps a second where it is one."""
    return int(value) if float(value).is_integer() else float(value)


def _described(job: Job, feature: OutFeature) -> dict[str, Any]:
    names = feature.names
    if feature.is_camera and names is None:
        names = ["height", "width", "channels"]
    said: dict[str, Any] = {"dtype": feature.dtype, "shape": list(feature.shape), "names": names}
    if feature.dtype == "video":
        said["info"] = dict(feature.info) if feature.info is not None else _video_info(job, feature)
    return said


def _video_info(job: Job, camera: OutFeature) -> dict[str, Any]:
    """In LeRobot's words, of the first episode's video."""
    stream = VideoStream.from_dict(KnownFacts(job).of_camera(camera, 0)["stream"])
    told = {
        "video.height": stream.height,
        "video.width": stream.width,
        "video.codec": stream.codec,
        "video.pix_fmt": stream.pixel_format,
        "video.is_depth_map": stream.depth is not None,
        "video.fps": _number(job.source.fps),
        "video.channels": camera.shape[2],
        "has_audio": False,
    }
    return told | lerobot_depth(stream.depth) if stream.depth is not None else told
