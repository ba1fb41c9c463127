"""Writes a tuning as a configuration file: every value with its reason beside it."""

from collections.abc import Iterator

from epistream.configs.tuner import Tuning
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


def _head(tuning: Tuning) -> Iterator[str]:
    ranks, prediction = tuning.options.ranks, tuning.prediction
    yield f"Chosen by 'epistream tune' for {ranks} rank{'s' if ranks > 1 else ''} on this machine:"
    yield f"{tuning.machine}."
    yield (
        f"Predicted: {prediction.windows_per_s:,.0f} windows/s on the node ({prediction.limit} limits it), "
        f"{prediction.first_epoch_windows_per_s:,.0f} in the first epoch;"
    )
    yield f"memory {prediction.memory_text}."
    for note in tuning.notes:
        yield f"Note: {note}."
