"""From an interaction log to arrays, splits, batches and streams."""
