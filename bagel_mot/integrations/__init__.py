"""What other projects load from this one: each has a folder here, which alone imports that project."""
