"""The samples of a tar, their members sorted by what they are; what has no place is refused or told of."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from epistream.errors import FormatError
from epistream.sharding.pictures.codec import Codec
from epistream.sharding.pictures.codecs import codec_of_suffix
from epistream.sharding.tar.captions import CAPTIONS
from epistream.sharding.tar.sample_names import ONLY_CAMERA, divide, is_picture, is_video
from epistream.sharding.tar.tar_reader import Member

_log = logging.getLogger(__name__)

# Where to go with tars of which each sample is one step.
STEPS = "say of which episode each step is, see 'epistream index TARS --draft'"
WANTED = (
    "wanted one sample an episode, with members such as KEY.action.npy (steps first), "
    "KEY.observation.images.top.000000.jpg or KEY.observation.images.top.mp4, KEY.txt (instructions) and "
    "KEY.meta.json. "
    f"Pack the source with 'epistream pack'; or if each sample is one step, {STEPS}"
)
_NUMBERED = re.compile(r"(?:(.+)\.)?([0-9]{1,15})(\.[^.]+)")
_TOLD = 5


@dataclass
class Sample:
    """The members of one WebDataset sample, sorted by what they are.

    Args:
        key: What their names begin with.
        meta: ``meta.json``.
        captions: The text with the instructions.
        arrays: By feature.
        numbered: Frames, or parts of a camera of plain pixels, by camera and number.
        codecs: What kind of frames a camera has.
        videos: By camera.
        pictures: Without a number, so that nothing says which step they are of.
        strays: Data that nothing says the feature or the episode of: arrays without a name, values by number.
        others: What is neither a row nor a frame, nor says anything of the episode.
    """

    key: str
    meta: Member | None = None
    captions: Member | None = None
    arrays: dict[str, Member] = field(default_factory=dict)
    numbered: dict[str, dict[int, Member]] = field(default_factory=dict)
    codecs: dict[str, type[Codec]] = field(default_factory=dict)
    videos: dict[str, Member] = field(default_factory=dict)
    pictures: list[Member] = field(default_factory=list)
    strays: list[Member] = field(default_factory=list)
    others: list[Member] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether it has steps."""
        return bool(self.arrays or self.numbered or self.videos)

    @property
    def members(self) -> list[Member]:
        """Those that say nothing of steps."""
        said = [member for member in (self.meta, self.captions) if member]
        return [*said, *self.strays, *self.others]


def sort_samples(members: Sequence[Member], where: str) -> tuple[list[Sample], list[str]]:
    """The samples that have steps, in the order of their first members, and names of members that are part of none.

    Raises:
        FormatError: If there are none, if one has the same twice, or if pictures or arrays have no place in one.
    """
    samples: dict[str, Sample] = {}
    divided = divide((member.name for member in members), where, where.removesuffix(".tar"))
    for member in members:
        key, name = divided[member.name]
        if key:
            _check_key(key, member, where)
            _sort_in(samples.setdefault(key, Sample(key)), member, name.lower(), where)
    whole = [sample for sample in samples.values() if sample.is_whole]
    if not whole:
        first = ", ".join(member.name for member in members[:4])
        raise FormatError(
            f"{where}: {len(members)} members ({first or 'none'}), no episodes: {WANTED}; or, where samples are single "
            "steps, say what they mean: 'epistream index URL --draft'."
        )
    _refuse_what_has_no_place(samples.values(), where)
    left_out = [member.name for sample in samples.values() if not sample.is_whole for member in sample.members]
    left_out += [member.name for sample in whole for member in (*sample.others, *sample.pictures)]
    return whole, left_out


def tell_left_out(names: Sequence[str], where: str) -> None:
    """Log what is no part of an episode, so that nothing vanishes unseen."""
    if names:
        more = f" and {len(names) - _TOLD:,} more" if len(names) > _TOLD else ""
        _log.warning(
            "%s: left out, as neither rows nor frames of an episode: %s%s", where, ", ".join(names[:_TOLD]), more
        )


def _check_key(key: str, member: Member, where: str) -> None:
    if not key.isascii() or not key.isprintable():
        raise FormatError(
            f"{where}, {member.name!r}: key {key!r}, wanted printable ASCII. Rename the members, for example with "
            "tar --transform."
        )


def _sort_in(sample: Sample, member: Member, name: str, where: str) -> None:
    numbered = _split_number(name)
    twice: Member | None = None
    if name == "meta.json":
        twice, sample.meta = sample.meta, member
    elif name in CAPTIONS:
        twice, sample.captions = sample.captions, member
    elif numbered:
        camera, number, codec = numbered
        known = sample.codecs.setdefault(camera, codec)
        if known is not codec:
            raise FormatError(
                f"{where}, {member.name}: {codec.name} among the {known.name} frames of {camera}, wanted one kind of "
                "frames a camera. Convert them."
            )
        frames = sample.numbered.setdefault(camera, {})
        twice, frames[number] = frames.get(number), member
    elif is_video(name):
        camera = name.rpartition(".")[0] or ONLY_CAMERA
        twice, sample.videos[camera] = sample.videos.get(camera), member
    elif is_picture(name):
        sample.pictures.append(member)
    elif name == "npy" or (name[:1].isdecimal() and _first(name).isdecimal()):
        sample.strays.append(member)
    elif name.endswith(".npy"):
        twice, sample.arrays[name[:-4]] = sample.arrays.get(name[:-4]), member
    else:
        sample.others.append(member)
    if twice:
        beside = "" if twice.name == member.name else f", the same as {twice.name}"
        raise FormatError(f"{where}, {member.name}{beside}: this field twice in one sample, wanted it once.")


def _first(name: str) -> str:
    return name.partition(".")[0]


def _split_number(name: str) -> tuple[str, int, type[Codec]] | None:
    """Camera, number and codec of a numbered member: a frame, or part of an array, numbered as we write them."""
    matched = _NUMBERED.fullmatch(name)
    codec = codec_of_suffix(matched[3]) if matched else None
    if not matched or codec is None or codec.storage == "video":
        return None
    if codec.storage == "array" and (not matched[1] or len(matched[2]) < 6):
        return None
    return matched[1] or ONLY_CAMERA, int(matched[2]), codec


def _refuse_what_has_no_place(samples: Iterable[Sample], where: str) -> None:
    for sample in samples:
        if sample.strays and (sample.is_whole or sample.pictures):
            raise FormatError(
                f"{where}, {sample.strays[0].name}: data of {sample.key} without the name of a feature, {WANTED}."
            )
        if sample.pictures and not sample.is_whole:
            raise FormatError(
                f"{where}, {sample.pictures[0].name}: one picture of sample {sample.key}, which has neither rows nor "
                f"numbered frames, {WANTED}."
            )
