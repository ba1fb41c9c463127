"""What keys of a source are called as features: lower case, in letters that members of tars can have."""

import re
from collections.abc import Iterable

import xxhash

from epistream.sharding.format.features import Feature, can_be_name

# As long as the names of pictures in a tar may be, which has 100 bytes for the episode, the feature and the step.
_CUT_CHARS, _MAX_CHARS = 63, 80
# What `usable_name` and `feature_name` put into a name that the source does not have.
_MADE = re.compile(r"(?:^|[._])((?:cam|key)_[^.]*|u[0-9a-f]{4,6}(?:_u[0-9a-f]{4,6})*|[0-9a-f]{8})$")


def feature_name(text: str) -> str:
    """`text` as part of a feature's name: lower case, and an underscore for what tar members cannot have.

    Of a key without any letter or digit of ASCII nothing would be left to tell it from others; its characters are
    named by their numbers in Unicode.
    """
    return ".".join(map(_piece, text.split("."))).strip("/")


def usable_name(name: str, *, is_camera: bool = False) -> str:
    """`name` if features can be called so, else one like it that they can: digits alone, for example, get a prefix.

    =============================== =====================================
    the key in the file             as a camera, or else
    =============================== =====================================
    317222071234 (6 digits or more) ``cam_317222071234``, ``key_...``
    task, meta, episode_index, ...  ``key_task``: these have a meaning
    more than 80 characters         the first 63 and a checksum of all
    =============================== =====================================
    """
    if can_be_name(name):
        return name
    word = "cam" if is_camera else "key"
    head, dot, last = name.rpartition(".")
    name = f"{head}{dot}{word}_{last}" if last.isdecimal() else name
    name = name if can_be_name(name[:_CUT_CHARS]) else f"{word}_{name}"
    if len(name) > _MAX_CHARS:
        name = f"{name[:_CUT_CHARS]}_{xxhash.xxh32_hexdigest(name.encode())}"
    return name


def made_names(features: Iterable[Feature]) -> list[str]:
    """Of features whose key in the file cannot be a name: what they are called instead, in words."""
    found = []
    for feature in features:
        made = _MADE.search(feature.name)
        if made and made[1] not in re.sub(r"[^a-z0-9_.\-/]", "_", feature.source_path.lower()):
            found.append(f"{feature.source_path} is {feature.name}")
    return found


def _piece(text: str) -> str:
    plain = re.sub(r"[^a-z0-9_\-]", "_", text.lower())
    if re.search("[a-z0-9]", plain) or text.isascii():
        return plain
    return re.sub("_+", "_", "".join("_" if sign.isascii() else f"_u{ord(sign):04x}" for sign in text)).strip("_")
