"""What a whole dataset is: its manifest on disk, the table of shards and episodes that it gives, and its statistics."""
