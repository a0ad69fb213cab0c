"""The commands `persona recsys ...`."""
