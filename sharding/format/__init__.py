"""What a shard is: features, codecs, its index, its episodes; values as tables and texts; statistics of values."""
