"""The packing job: scan, plan, one task a shard, then the manifest."""
