"""Small files anywhere, and what a user means by a source."""
