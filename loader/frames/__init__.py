"""Camera frames: decoded, resized, and kept for whoever needs them next; no torch."""
