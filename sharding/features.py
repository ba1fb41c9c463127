"""`Feature`, under the name by which earlier releases offered it."""

from epistream.sharding.format.features import Feature

__all__ = ["Feature"]
