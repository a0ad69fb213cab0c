"""The classifier on a device: the folder it is exported to, and what runs there without torch."""
