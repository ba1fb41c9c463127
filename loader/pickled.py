"""What of a user's functions is pickled: their names."""

import sys
from collections.abc import Mapping
from types import FunctionType
from typing import Any

from epistream.errors import OptionError


def check_pickled(where: str, hooks: Mapping[str, Any]) -> None:
    """Refuse functions that nobody finds by their names, as pickle does, but say which option they are.

    Args:
        where: what is being pickled.
        hooks: what the user gave, by option. Only plain functions are looked at.

    Raises:
        OptionError: a lambda, or a function inside another; names the option, the function and its line.
    """
    for name, hook in hooks.items():
        if not isinstance(hook, FunctionType):
            continue
        found: Any = sys.modules.get(hook.__module__)
        for part in hook.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is not hook:
            code = hook.__code__
            raise OptionError(
                f"{where}: {name} is {hook.__qualname__} of {code.co_filename}:{code.co_firstlineno}, which does not "
                "pickle, as no module holds it by that name. Define it with def at the top of a module."
            )
