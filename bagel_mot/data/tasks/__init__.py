"""Mappers: a row of data, and random draws, to a document; one file for each kind of task."""
