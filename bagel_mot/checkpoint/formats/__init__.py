"""Layouts in which weights are published, one file each: from what stands in a file to tensors under official names."""
