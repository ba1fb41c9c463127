"""What a loader did, and what that says."""
