"""Verify, inspect, contact sheet, drafts of layouts: looking at what was packed or is to be."""
