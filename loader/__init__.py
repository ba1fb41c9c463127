"""Windows out: stream, loader, mixture, options, state."""
