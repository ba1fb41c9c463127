"""Verify, inspect, contact sheet: looking at what was packed."""
