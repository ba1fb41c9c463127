"""Windows out: world, plan, reader, batch ring, stream, loader."""
