"""Presets, their schema, and the tuner that chooses one."""
