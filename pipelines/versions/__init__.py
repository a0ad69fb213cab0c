"""Versions of models and banks: what they are compared by, how they differ, and which is served."""
