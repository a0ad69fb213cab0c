"""The commands `persona vision ...`."""
