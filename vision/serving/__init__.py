"""A released classifier, and the bundle it is kept in."""
