"""Readers: rows of files in their order, by unit."""
