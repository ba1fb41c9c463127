"""The rules by which measurements are judged: one module for each kind."""
