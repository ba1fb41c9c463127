"""Tars: written, walked, indexed again, and the sidecars that other readers want."""
