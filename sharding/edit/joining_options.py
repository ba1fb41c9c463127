"""Options of episodes that join a dataset: their split depends on nothing but what they are called."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from epistream.errors import FormatError
from epistream.sharding.format.division import Division
from epistream.sharding.format.feature_sets import describe_difference
from epistream.sharding.format.features import Feature
from epistream.sharding.pack.options import PackOptions


@dataclass(frozen=True)
class Joined:
    """A dataset that episodes join.

    Args:
        url: What messages call it.
        features: What it has, as it calls them.
        renamed: Name of a feature there -> its name in shards, of those that differ.
        dropped: Features of shards that it leaves out, by their names there.
    """

    url: str
    features: Mapping[str, Feature]
    renamed: Mapping[str, str]
    dropped: tuple[str, ...]

    def choose(self, found: Iterable[Mapping[str, Feature]], usual: Mapping[str, Feature]) -> Mapping[str, Feature]:
        """The features of new episodes that go with the dataset's, of all that any of them have.

        Args:
            found: The features of each kind of episode.
            usual: Those of most of them.

        Raises:
            FormatError: If none go with them; the message names how most differ.
        """
        alike = next((one for one in found if self._difference(one) is None), None)
        if alike is None:
            raise FormatError(
                f"{self.url}: episodes to be added: {self._difference(usual)}, wanted the features of the dataset. "
                "Nothing was packed. Give the options that it was packed with, or pack them apart, rename and drop "
                "features there ('epistream edit rename', 'epistream edit drop'), and merge."
            )
        return alike

    def called(self, features: Mapping[str, Feature]) -> dict[str, Feature]:
        """Features of shards as the dataset calls them, without those that it leaves out."""
        new_names = {was: name for name, was in self.renamed.items()}
        return {
            new_names.get(name, name): replace(one, name=new_names.get(name, name))
            for name, one in features.items()
            if name not in self.dropped
        }

    def _difference(self, features: Mapping[str, Feature]) -> str | None:
        return describe_difference(self.called(features), self.features)


@dataclass(frozen=True)
class JoiningOptions(PackOptions):
    """As `PackOptions`, for few episodes beside many: no split gets one of them only so that it is not empty.

    Args:
        joined: The dataset whose features they must have.
    """

    joined: Any = None  # a Joined: options are checked by their types, which would copy every feature

    @property
    def division(self) -> Division | None:
        """How episodes are divided; None for the splits of the sources."""
        return None if self.val_fraction is None else Division(self.val_fraction, self.split_seed, fills_both=False)

    def deciding(self) -> dict[str, Any]:
        """As of other jobs: what the episodes join decides nothing about their bytes."""
        return {name: value for name, value in super().deciding().items() if name != "joined"}

    def chosen_features(
        self, found: Iterable[Mapping[str, Feature]], usual: Mapping[str, Feature]
    ) -> Mapping[str, Feature]:
        """As `Joined.choose`; the usual ones where nothing is joined."""
        joined: Joined | None = self.joined
        return usual if joined is None else joined.choose(found, usual)
