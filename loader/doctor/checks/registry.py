"""All checks, in the order in which their findings are told."""

from collections.abc import Collection, Iterator

from epistream.errors import OptionError
from epistream.hints import did_you_mean
from epistream.loader.doctor.checks.action_checks import CHECKS as OF_ACTIONS
from epistream.loader.doctor.checks.camera_checks import CHECKS as OF_CAMERAS
from epistream.loader.doctor.checks.check import Check, Finding
from epistream.loader.doctor.checks.episode_checks import CHECKS as OF_EPISODES
from epistream.loader.doctor.checks.set_checks import CHECKS as OF_SETS
from epistream.loader.doctor.checks.step_checks import CHECKS as OF_STEPS
from epistream.loader.doctor.checks.time_checks import CHECKS as OF_TIMES
from epistream.loader.doctor.checks.value_checks import CHECKS as OF_VALUES
from epistream.loader.doctor.facts.facts import Facts

CHECKS: tuple[Check, ...] = (*OF_SETS, *OF_EPISODES, *OF_VALUES, *OF_STEPS, *OF_ACTIONS, *OF_TIMES, *OF_CAMERAS)


def chosen(only: Collection[str] = (), skip: Collection[str] = (), *, frames: bool = True) -> list[Check]:
    """Some checks.

    Args:
        only: Codes; all if empty.
        skip: Codes that are left out.
        frames: Whether to have those that look at pictures.

    Raises:
        OptionError: If a code is none, or nothing is left.
    """
    codes = [check.code for check in CHECKS]
    for code in (*only, *skip):
        if code not in codes:
            raise OptionError(f"{code!r}: no check, wanted one of them. {_hint(code, codes)}")
    kept = [
        check
        for check in CHECKS
        if (not only or check.code in only) and check.code not in skip and (frames or not check.needs_frames)
    ]
    if not kept:
        raise OptionError("no check is left, wanted at least one. Leave out less.")
    return kept


def _hint(code: str, codes: list[str]) -> str:
    return did_you_mean(code, codes, "'epistream doctor --list' names them.")


def judged(facts: Facts, checks: Collection[Check]) -> Iterator[Finding]:
    """What checks find, check after check."""
    row_of = {int(episode): row for row, episode in enumerate(facts.measured.episode.tolist())}
    measured = facts.measured
    for check in checks:
        for place in check.find(facts):
            row = row_of.get(place.episode) if place.episode is not None else None
            known = ("", "", "") if row is None else (measured.source[row], measured.path[row], measured.key[row])
            yield Finding(check.code, check.level, place, check.advice, *known)
