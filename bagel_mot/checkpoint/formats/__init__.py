"""Layouts in which weights are published, one module each: from a file to tensors under official names."""
