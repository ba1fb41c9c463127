"""LIBERO: robomimic's tree, one task a file, pictures stored upside down."""

import h5py

from epistream.sharding.layouts.base import Field, turned
from epistream.sharding.layouts.robomimic import RobomimicLayout, parse_json_map
from epistream.sharding.layouts.values import plain, text_attribute, texts


class LiberoLayout(RobomimicLayout):
    """The files of LIBERO's ``create_dataset.py``."""

    name = "libero"
    looks_for = "/data/<demo>/actions, /data/<demo>/obs/<key>, attribute bddl_file_name or macros_image_convention"

    def matches(self, file: h5py.File) -> bool:
        """Whether `file` is of this layout."""
        marks = ("bddl_file_name", "macros_image_convention")
        return super().matches(file) and any(mark in file["data"].attrs for mark in marks)

    def tasks(self, file: h5py.File, demo: h5py.Group) -> tuple[str, ...]:
        """The instruction of the file's task."""
        value = plain(parse_json_map(text_attribute(file["data"], "problem_info")).get("language_instruction"))
        if isinstance(value, list):
            # One text cut into words or characters, not several instructions.
            words = [str(word) for word in value]
            value = ("" if all(len(word) == 1 for word in words) else " ").join(words)
        return texts(value)

    def turn(self, field: Field) -> Field:
        """OpenGL's pictures begin at the bottom."""
        return turned(field, 180)
