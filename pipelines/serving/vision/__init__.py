"""The service of a classifier."""
