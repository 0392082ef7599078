"""The parts that other projects load: each has a folder here, which alone imports that project."""
