"""What an unfinished packing job says of itself in the folder that it writes to."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from epistream.errors import PackError
from epistream.file_systems import local_path
from epistream.sharding.files.names import temporary_name
from epistream.sharding.tar.shard_store import Store
from epistream.sharding.tar.tar_writer import write_error

JOB_FILE = ".pack-job.json"


@dataclass(frozen=True)
class JobNote:
    """An unfinished job.

    Args:
        identity: Hashes of what decides its bytes, as `plan.identity` makes them.
        prefix: What its shards begin with.
        num_tasks: Of how many tasks it is, if it is an array.
    """

    identity: Mapping[str, str]
    prefix: str
    num_tasks: int | None = None

    def refuse_other(self, identity: Mapping[str, str], num_tasks: int | None, url: str) -> None:
        """See that it is the job that somebody wants to go on with.

        Raises:
            PackError: If it is not.
        """
        changed = [name for name, value in identity.items() if self.identity.get(name) != value]
        if changed:
            raise PackError(
                f"{url}: the unfinished job there had other {' and '.join(changed)}, wanted the same to resume. Give "
                "them as before, or begin again with --overwrite."
            )
        if num_tasks is not None and num_tasks != self.num_tasks:
            found = f"{self.num_tasks} tasks" if self.num_tasks else "a single one"
            raise PackError(
                f"{url}: the unfinished job there is of {found}, wanted --num-tasks {num_tasks}. Give the same number, "
                "or finish it by one process with --resume."
            )


def read_note(store: Store) -> JobNote | None:
    """The note that is there; None if there is none, or it is torn."""
    with contextlib.suppress(OSError, ValueError):
        said: Any = json.loads(store.read(JOB_FILE))
        if isinstance(said, dict) and isinstance(said.get("identity"), dict) and isinstance(said.get("prefix"), str):
            num_tasks = said.get("num_tasks")
            return JobNote(said["identity"], said["prefix"], num_tasks if isinstance(num_tasks, int) else None)
    return None


def write_note(store: Store, note: JobNote) -> JobNote:
    """Leave a note, unless another task of an array was first.

    Returns:
        The note that is there.

    Raises:
        PackError: If it cannot be written.
    """
    said = {name: value for name, value in asdict(note).items() if value is not None}
    data = json.dumps(said).encode()
    folder = local_path(store.url)
    if note.num_tasks is None or folder is None:
        store.keep(JOB_FILE, data, must=True)
        return note
    temporary, path = folder / temporary_name(JOB_FILE), folder / JOB_FILE
    try:
        temporary.write_bytes(data)
        try:
            os.link(temporary, path)  # unlike a rename it leaves a file that is there
        except FileExistsError:
            return read_note(store) or note
        except OSError:  # a file system without links
            temporary.replace(path)
    except OSError as error:
        raise write_error(path, 0, error) from error
    finally:
        temporary.unlink(missing_ok=True)
    return note
