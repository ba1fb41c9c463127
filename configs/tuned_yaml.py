"""Writes a tuning as a configuration file: every value with its reason beside it."""

from collections.abc import Iterator

from epistream.configs.tuner import Tuning
from epistream.loader.measuring.pictures import PictureCost
from epistream.units import size_text
from epistream.yaml_text import dump_yaml


def tuned_yaml(tuning: Tuning) -> str:
    """YAML for `load_config`, with comments."""
    lines = [f"# {line}" for line in _head(tuning)]
    section: tuple[str, ...] = ()
    for name, value in tuning.config.said.items():
        if name == "stream.storage_options" and value:  # they may be secrets, which are for no file that others read
            lines.append("# storage_options are not written: give them to load_config, EpisodeStream or the command.")
            continue
        *path, key = name.split(".")
        for depth, part in enumerate(path):
            if section[: depth + 1] != tuple(path[: depth + 1]):
                lines.append(f"{'  ' * depth}{part}:")
        section = tuple(path)
        text = f"{'  ' * len(path)}{key}: {dump_yaml(value, one_line=True)}"
        reason = tuning.reasons.get(name)
        lines.append(f"{text}  # {reason}" if reason else text)
    return "\n".join(lines) + "\n"


def picture_cells(row: PictureCost) -> list[str]:
    """What a form of the pictures costs, in words: dataset, loss, decoding, encoding, pool."""
    cells = [f"dataset {size_text(row.dataset_bytes)}", f"{row.bytes_per_frame:,.0f} bytes a frame"]
    if row.psnr_db is not None and row.worst_psnr_db is not None:
        cells.append(f"{row.psnr_db:.1f} dB (worst {row.worst_psnr_db:.1f})")
    cells.append(f"decoded in {row.decode_ms:.2f} ms")
    if row.encode_frames_per_s is not None:
        cells.append(f"encoded at {row.encode_frames_per_s:,.0f} frames/s a core")
    return [*cells, f"pool {size_text(row.pool_bytes)}"] if row.pool_bytes else cells


def _head(tuning: Tuning) -> Iterator[str]:
    ranks, prediction = tuning.options.ranks, tuning.prediction
    yield f"Chosen by 'epistream tune' for {ranks} rank{'s' if ranks > 1 else ''} on this machine:"
    yield f"{tuning.machine}."
    yield (
        f"Predicted: {prediction.windows_per_s:,.0f} windows/s on the node ({prediction.limit} limits it), "
        f"{prediction.first_epoch_windows_per_s:,.0f} in the first epoch;"
    )
    yield f"memory {prediction.memory_text}."
    for row in tuning.pictures:
        yield f"Pictures {row.name}: {', '.join(picture_cells(row))}."
    for note in tuning.notes:
        yield f"Note: {note}."
