"""A run: planned, begun or gone on with, recorded, measured."""
