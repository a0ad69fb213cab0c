"""Training: one loop for hosts, editors and rivals of every task, in one process or on many ranks."""
