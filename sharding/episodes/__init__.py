"""Single episodes of shards, their values and what they say of themselves, read without walking a tar."""
