"""HDF5 files streamed without packing."""
