"""Key and field of each member of a tar: as WebDataset divides names, and by folder where frames lie in folders.

In the folder of an episode a slash counts as the dot of the usual form:

    ep0.action.npy                 ep0/action.npy
    ep0.top.000000.jpg             ep0/top/000000.jpg, ep0/top/frame_000000.jpg
    ep0.images.top.000000.jpg      ep0/images/top/000000.jpg
    ep0.image.000000.jpg           ep0/000000.jpg
    ep0.top.mp4                    ep0/top.mp4
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping

from epistream.errors import FormatError
from epistream.sharding.pictures.codecs import codec_of_suffix
from epistream.sharding.tar.captions import CAPTIONS

# The camera of frames that lie in no folder of their own.
ONLY_CAMERA = "image"
# The key is everything up to the first dot after the last slash.
_KEY = re.compile(r"((?:.*/|)[^.]+)\.([^/]*)")
_FRAME = re.compile(r"(?:(.+)/)(?:(?:frame|image|img|rgb|color|depth)[_-]?)?([0-9]{1,15})(\.[^./]+)", re.IGNORECASE)
# Of the files in an episode's folder, those that show that it is one.
_NAMED = CAPTIONS - {"txt"} | {"meta.json"}

Division = Mapping[str, tuple[str, str]]


def split_key(name: str) -> tuple[str, str]:
    """Key of the sample and name of the field; both empty for members that belong to no sample.

    >>> split_key("lab/ep000_00012.top.jpg")
    ('lab/ep000_00012', 'top.jpg')
    """
    matched = _KEY.fullmatch(name)
    return (matched[1], matched[2]) if matched else ("", "")


def divide(names: Iterable[str], where: str, stem: str) -> Division:
    """(key, field) of each member by its name; both empty for members that belong to no sample.

    Args:
        names: Of all members.
        where: The tar, for messages.
        stem: Its name without suffix, which is the key of an episode whose folder is the tar itself.

    Raises:
        FormatError: If frames lie in a folder, and nothing says of which episode.
    """
    divided = {name: ("", "") if _is_hidden(name) else split_key(name) for name in names}
    folders = _folders_of_frames(divided) | _folders_of_videos(divided)
    if not folders:
        return divided
    keys_of = _episode_folders(set(folders.values()), {n: d for n, d in divided.items() if n not in folders}, stem)
    homeless = next((name for name, folder in folders.items() if folder not in keys_of), None)
    if homeless is not None:
        raise FormatError(
            f"{where}, {homeless}: a frame in a folder, and nothing says of which episode, wanted members such as "
            "ep0.action.npy, ep0.txt or ep0.meta.json beside a folder ep0. Name the folders of frames EPISODE/CAMERA."
        )
    bases = {base: key for base, key in keys_of.values()}
    return {name: given if _is_hidden(name) else _in_folder(name, bases, given) for name, given in divided.items()}


def is_picture(name: str) -> bool:
    """Whether a member is one picture, by its suffix."""
    codec = codec_of_suffix("." + name.rpartition(".")[2].lower())
    return codec is not None and codec.storage == "members"


def is_video(name: str) -> bool:
    """Whether a member is a video of a whole episode, by its suffix."""
    codec = codec_of_suffix("." + name.rpartition(".")[2].lower())
    return codec is not None and codec.storage == "video"


def _folders_of_frames(divided: Division) -> dict[str, str]:
    """The folder of each frame that is numbered in one; a picture beside other members of its sample is no frame."""
    beside = {key for name, (key, _) in divided.items() if not is_picture(name)}
    folders = {}
    for name, (key, _) in divided.items():
        matched = _FRAME.fullmatch(name)
        if matched and is_picture(name) and key not in beside:
            folders[name] = matched[1]
    return folders


def _folders_of_videos(divided: Division) -> dict[str, str]:
    """The folder of each video that lies in the folder of an episode, and not in one of its own."""
    others = {name: given for name, given in divided.items() if not is_video(given[1])}
    beside = {key for key, _ in others.values()}
    keys, parents = _shown(others)
    folders = {}
    for name, (key, field) in divided.items():
        folder = name.rpartition("/")[0]
        is_inside = any(start in keys for start in _cut(folder, "/.")) or bool(parents & {*_cut(folder, "/"), ""})
        if is_video(field) and key not in beside and is_inside:
            folders[name] = folder
    return folders


def _shown(others: Division) -> tuple[set[str], set[str]]:
    """Keys of episodes, and folders that are one, by what is neither a frame nor a video."""
    keys = {key for key, field in others.values() if _shows_an_episode(field)}
    parents = {
        key.rpartition("/")[0]
        for key, field in others.values()
        if field.lower() == "npy" or f"{key.rpartition('/')[2]}.{field}".lower() in _NAMED
    }
    return keys, parents


def _episode_folders(folders: Collection[str], others: Division, stem: str) -> dict[str, tuple[str, str]]:
    """For each folder of frames the folder of its episode, and the episode's key."""
    keys, parents = _shown(others)
    found = {}
    for folder in folders:
        above = [*_cut(folder, "/"), ""]
        if key := next((start for start in _cut(folder, "/.") if start in keys), ""):
            found[folder] = key, key
        elif (parent := next((start for start in above if start in parents), None)) is not None:
            found[folder] = parent, parent or stem
        elif len(keys) == 1:  # all of the tar is one episode
            found[folder] = "", next(iter(keys))
        elif folder.count("/") == 1:
            found[folder] = above[1], above[1]
    return found


def _shows_an_episode(field: str) -> bool:
    field = field.lower()
    is_numbered = is_picture(field) and field.split(".")[-2:-1] and field.split(".")[-2].isdecimal()
    return field.endswith(".npy") or field == "meta.json" or field in CAPTIONS or bool(is_numbered)


def _cut(name: str, signs: str) -> Iterator[str]:
    """The name, and what is left of it at each of some signs, the longest first."""
    yield name
    for at in range(len(name) - 1, 0, -1):
        if name[at] in signs:
            yield name[:at]


def _in_folder(name: str, bases: Mapping[str, str], given: tuple[str, str]) -> tuple[str, str]:
    """Key and field of a member by the folder of its episode; as given if it is in none."""
    base = next((start for start in _cut(name, "/.") if start in bases and start != name), "")
    if base not in bases or (not base and given[0] == bases[base]):
        return given
    rest = name[len(base) + 1 :] if base else name
    folder, _, last = rest.rpartition("/")
    matched = _FRAME.fullmatch(f"{folder or '/'}/{last}")
    if matched and is_picture(name):
        return bases[base], f"{(folder or ONLY_CAMERA).replace('/', '.')}.{matched[2]}{matched[3]}"
    return bases[base], rest.replace("/", ".")


def _is_hidden(name: str) -> bool:
    """Whether a program left it for itself, as macOS does beside every file."""
    return name.rpartition("/")[2].startswith(".")
