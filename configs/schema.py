"""What a configuration may say: every key with its unit, its range and its default.

Keys are the names of the arguments that they become, so nothing has two names.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from epistream.configs.fields import Codec, Count, Flag, Names, Number, Offsets, Patience, Seconds, Share, Size, Text
from epistream.loader.order.delta_timestamps import TOLERANCE_S

Normalize = Literal["mean_std", "min_max", "quantiles"]


class Section(BaseModel):
    """A group of keys. Unknown keys are errors, and so are values of another type: "8" is no number."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class WindowSection(Section):
    """What a sample reads: becomes `Window`."""

    obs: Offsets = Field([0], description="step offsets of observations, START:STOP or a list")
    action: Offsets = Field([0], description="step offsets of actions, START:STOP or a list")
    overrides: dict[Text, Offsets] = Field({}, description="step offsets of single features")
    pad: Literal["edge", "zero"] = Field("edge", description="what stands where an episode does not reach")
    drop_incomplete: Flag = Field(False, description="leave out anchors whose window leaves the episode")
    must_fit: Annotated[list[int], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[lowest, highest] offset that must lie inside the episode; all may be padded if null"
    )


class StreamSection(Section):
    """Arguments of `EpisodeStream`."""

    batch_size: Annotated[Count, Field(le=1 << 20)] = Field(1, description="windows per batch and rank")
    window: WindowSection = WindowSection()
    features: Names | None = Field(None, description="names to stream, in this order; all if null")
    split: Text | None = Field("auto", description="a split of the dataset; all if null")
    shuffle: Flag = Field(True, description="false streams in storage order")
    seed: Annotated[int, Field(strict=True, ge=0, lt=1 << 64)] = Field(0, description="of the order")
    remainder: Literal["drop", "pad", "uneven"] = Field("drop", description="windows that fill no global batch")
    image_size: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[height, width] in pixels that camera frames are resized to as they are read"
    )
    decode: Literal["auto", "once", "per_read"] = Field("auto", description="whether decoded episodes are kept")
    channels_first: Flag = Field(False, description="pictures as (..., C, H, W)")
    squeeze: Flag = Field(False, description="drop step axes of length 1")
    sample_format: Literal["act", "diffusion_policy", "lerobot", "ilstudio"] | None = Field(
        None, description="batches as these code bases make them"
    )
    delta_timestamps: dict[Text, list[Number]] | None = Field(
        None, description="offsets in seconds by feature, which win over the window's"
    )
    tolerance_s: Annotated[Number, Field(ge=0)] = Field(
        TOLERANCE_S, description="seconds that a recorded step may lie from a wanted time"
    )
    action_delta: Literal["delta_step", "delta_first"] | None = Field(None, description="actions relative to states")
    normalize: Normalize | dict[Text, Normalize] | None = Field(
        None, description="by the dataset's statistics; for all states and actions, or by feature"
    )
    instruction: Literal["first", "random", "all"] = Field("first", description="of an episode with several")
    on_bad: Literal["raise", "skip"] = Field("raise", description="what a shard that cannot be read does")
    layout: Text | None = Field(None, description="of HDF5 files, or a YAML file that describes one; found if null")
    storage_options: dict[Text, Any] = Field({}, description="for fsspec; keep secrets out of files")


class OrderSection(Section):
    """Becomes `OrderOptions`."""

    lanes: Annotated[Count, Field(le=1 << 16)] = Field(8, description="independent runs; a multiple of the nodes")
    resident_shards: Annotated[Count, Field(le=1 << 24)] | None = Field(
        None, description="K, shards drawn from at a time, at least 2 x lanes; from the manifest if null"
    )
    reshuffle_lanes: Flag = Field(False, description="deal shards to lanes anew each epoch, and fetch them anew")


class CacheSection(Section):
    """Becomes `CacheOptions`."""

    mode: Literal["auto", "shm", "disk", "off"] = Field("auto", description="where shards are kept on a node")
    budget_bytes: Size | None = Field(None, description="most bytes in shared memory; what the machine has if null")
    directory: Text | None = Field(None, description="on a tmpfs; one per user in /dev/shm if null")
    disk_directory: Text | None = Field(None, description="a second tier on a local disk, which outlives the job")
    disk_budget_bytes: Size | None = Field(None, description="most bytes on the disk; a share of what is free if null")
    keep: Flag = Field(False, description="the directories outlive their last user")
    memory_fraction: Share = Field(0.5, description="share of the free memory that the cache may take")
    fill_timeout_s: Patience = Field(660.0, description="seconds to wait for another process's fill")
    room_timeout_s: Patience = Field(10.0, description="seconds to wait for room in the cache")
    fetch_timeout_s: Patience = Field(600.0, description="seconds for the fetch of a shard, retries included")
    request_timeout_s: Patience = Field(60.0, description="seconds for one request")
    attempts: Annotated[Count, Field(le=1000)] = Field(6, description="tries of one request")
    parallel_requests: Annotated[Count, Field(le=1024)] = Field(8, description="requests at a time for a shard")


class LoaderSection(Section):
    """Arguments of `StreamingLoader`."""

    num_workers: Annotated[int, Field(strict=True, ge=0, le=1024)] | Literal["auto"] = Field(
        "auto", description="worker processes of each rank; auto is this machine's cores over its ranks, at most 16"
    )
    num_threads: Annotated[int, Field(strict=True, ge=0, le=1024)] | None = Field(
        None, description="threads, when num_workers is 0; 2 if null"
    )
    prefetch: Annotated[Count, Field(le=1024)] = Field(2, description="batches that each worker prepares ahead")
    start_method: Literal["fork", "spawn", "forkserver"] = Field("fork", description="how processes are started")
    device: Text | None = Field(None, description="where batches are moved ahead of the loop; the host if null")
    timeout_s: Seconds = Field(600.0, description="seconds to wait for a batch before giving up")


class MonitorSection(Section):
    """Becomes `MonitorOptions`."""

    log_every_s: Seconds | None = Field(None, description="seconds between lines in the log; none if null")
    metrics_port: Annotated[int, Field(strict=True, ge=1, le=65535)] | None = Field(
        None, description="TCP port for Prometheus, plus the rank's number on its node; none if null"
    )
    metrics_host: Text = Field("127.0.0.1", description="address that the metrics are served at")


class PackSection(Section):
    """Options of `pack`, for `Config.pack`."""

    codec: Codec | None = Field(None, description="of cameras; as recorded, or jpeg, if null")
    quality: Annotated[Count, Field(le=100)] = Field(95, description="of JPEG, 1 to 100")
    image_size: Annotated[list[Count], Field(min_length=2, max_length=2)] | None = Field(
        None, description="[width, height] in pixels of colour cameras; as recorded if null"
    )
    shard_size: Annotated[Size, Field(ge=1 << 16)] = Field(128 << 20, description="target bytes of a shard")


class Settings(Section):
    """A whole configuration."""

    source: Text | list[Text] | None = Field(None, description="what to stream, as EpisodeStream takes it")
    stream: StreamSection = StreamSection()
    order: OrderSection = OrderSection()
    cache: CacheSection = CacheSection()
    loader: LoaderSection = LoaderSection()
    monitor: MonitorSection = MonitorSection()
    pack: PackSection = PackSection()
