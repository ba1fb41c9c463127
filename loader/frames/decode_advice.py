"""Whether an order lets frames be decoded again and again, and what to set so that each is decoded once."""

from collections.abc import Mapping
from dataclasses import dataclass

from epistream.loader.frames.block_pool_plan import pooled_cameras
from epistream.loader.frames.frames import FrameOptions
from epistream.loader.order.options import SMALL_GROUP
from epistream.loader.order.plan import Plan
from epistream.loader.order.window import Window
from epistream.sharding.format.features import Feature


@dataclass(frozen=True)
class DecodedAgain:
    """What is decoded more often than once, and what to set."""

    why: str
    cure: str


def decoded_again(
    features: Mapping[str, Feature], window: Window, frames: FrameOptions, plan: Plan
) -> DecodedAgain | None:
    """Look at a stream's order and windows.

    Args:
        features: that are read.
        window: what is shown of them.
        frames: how frames are made.
        plan: the order.

    Returns:
        None where blocks would bring nothing: frames are kept, one step of single pictures is shown, or the order is
        not shuffled.
    """
    cameras = pooled_cameras(features, window, frames, 1)
    if not cameras or not plan.options.shuffle or frames.decode == "once":
        return None
    kept = ', decode="auto"' if frames.decode == "per_read" else ""
    if plan.blocks is not None:
        return DecodedAgain("blocks are not kept decoded", 'decode="auto"') if kept else None
    several = max(len(camera.offsets) for camera in cameras)
    group = max(features[camera.name].group_steps or 1 for camera in cameras)
    cure = f'order=OrderOptions(by="blocks"){kept}'
    if group > SMALL_GROUP:
        return DecodedAgain(f"for each window of a video up to {group} frames of a group are decoded", cure)
    if several > 1:
        return DecodedAgain(f"each frame is decoded for up to {several} windows that show it", cure)
    return None
