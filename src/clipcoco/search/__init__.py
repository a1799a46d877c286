"""A sentence or a picture -> the nearest pictures, of a run's validation set or of any folder."""
