"""Arrays into what a training loop gets: deltas, normalisation, formats."""
