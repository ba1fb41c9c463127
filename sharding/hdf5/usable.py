"""Which HDF5 files of many can be streamed together, and why each of the others cannot."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence

from epistream.errors import FormatError, LayoutError, SourceChangedError, SourceError
from epistream.sharding.format.features import Feature, describe_difference

_log = logging.getLogger(__name__)


def usable_files(
    urls: Sequence[str], features_of: Callable[[str], tuple[int, dict[str, Feature]]]
) -> tuple[list[str], dict[str, str]]:
    """Those that can be read and have the features that most episodes have; at a tie, what comes first.

    Args:
        urls: The files.
        features_of: Gives the number of episodes and the features of one, or raises what is wrong with it.

    Returns:
        The files to stream, in their order, and the reason for each of the others, which the log has as well.

    Raises:
        SourceError, SourceChangedError, LayoutError, FormatError: That of the first file, if none can be read.
    """
    features: dict[str, dict[str, Feature]] = {}
    votes: Counter[str] = Counter()  # by the first file that has these features
    reasons: dict[str, str] = {}
    first_error: Exception | None = None
    for url in urls:
        try:
            num_episodes, mine = features_of(url)
        except (SourceError, SourceChangedError, LayoutError, FormatError) as error:
            first_error = first_error or error
            reasons[url] = str(error)
            continue
        votes[next((one for one in votes if describe_difference(features[one], mine) is None), url)] += num_episodes
        features[url] = mine
    if not features:
        raise first_error or SourceError("HDF5 files: none, wanted at least one.")
    usual = votes.most_common(1)[0][0]
    for url, mine in features.items():
        difference = describe_difference(features[usual], mine)
        if difference is not None:
            reasons[url] = f"{url}: {difference}, wanted the features that most episodes have"
    for url in urls:
        if url in reasons:
            _log.warning("left out: %s", reasons[url])
    return [url for url in urls if url not in reasons], {url: reasons[url] for url in urls if url in reasons}
