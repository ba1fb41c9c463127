"""What trainers of others want to be handed: one module a trainer, which imports it; this imports nothing."""
