"""What is wrong with episodes: read, measured, and compared with each other."""
