"""The four presets, by how much data there is."""

from importlib import resources
from typing import Any

from epistream.yaml_text import parse_yaml

# Below so many bytes; GB are 10^9. See the comment in each file for why its values are what they are.
_LIMITS = (("small", 10**9), ("medium", 10**10), ("large", 10**11))
PRESETS = ("small", "medium", "large", "xlarge")


def preset_for(num_bytes: int) -> str:
    """The preset for a dataset of so many bytes.

    >>> [preset_for(size) for size in (10**8, 10**9, 5 * 10**10, 10**12)]
    ['small', 'medium', 'large', 'xlarge']
    """
    return next((name for name, limit in _LIMITS if num_bytes < limit), "xlarge")


def preset_text(name: str) -> str:
    """A preset's file as it is, comments included."""
    return (resources.files("epistream.configs") / f"{name}.yaml").read_text(encoding="utf-8")


def preset_values(name: str) -> dict[str, Any]:
    """What a preset's file says."""
    values: dict[str, Any] = parse_yaml(preset_text(name))
    return values
