"""How fast a stream runs on this machine, beside the bound."""
