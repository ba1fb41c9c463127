"""Which window stands where: integers only, no torch, no cache, nothing is read."""
