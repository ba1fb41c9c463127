"""HDF5 layouts: one module a layout, found by what a file holds."""
