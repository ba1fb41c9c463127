"""The map-style data set class of IL-Studio over the same reader and cache."""
