"""HDF5 files opened with care: what they hold and read from, walked with bounds."""
