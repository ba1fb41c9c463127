"""Which episodes are meant: a small language, and files that list them; nothing of a dataset is read."""
