"""Episodes in, shards out: HDF5 layouts, frame codecs, tar writer, indexes, manifest, packing."""
