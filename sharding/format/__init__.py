"""What is on disk: features, codecs, index, manifest, statistics."""
