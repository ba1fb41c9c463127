"""Instructions of an episode in a text member: one a line."""

from typing import BinaryIO

from epistream.errors import FormatError
from epistream.sharding.tar.tar_reader import Member, read_member

# Fields that hold the episode's instructions: `ep0.txt`, or under a name that says so.
CAPTIONS = frozenset(
    ("txt", *(f"{name}.txt" for name in ("task", "tasks", "instruction", "instructions", "language_instruction")))
) | {"caption.txt", "captions.txt", "prompt.txt"}
_LIMIT_BYTES = 1 << 20


def read_instructions(file: BinaryIO, member: Member, where: str) -> tuple[str, ...]:
    """The lines of a text member without white space around them; empty ones are none.

    Raises:
        FormatError: If it is no UTF-8 text, or larger than any list of instructions; the message begins with `where`.
    """
    place = f"{where}, {member.name}"
    if member.size > _LIMIT_BYTES:
        raise FormatError(
            f"{place}: {member.size:,} bytes, wanted at most {_LIMIT_BYTES:,} of instructions, one a line. "
            "Give the member another name if it holds something else."
        )
    data = read_member(file, member)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{place}: byte {error.start} is 0x{data[error.start]:02x} ({error.reason}), wanted instructions in UTF-8. "
            "Convert the text, for example with iconv."
        ) from error
    return tuple(line for line in map(str.strip, text.splitlines()) if line)
