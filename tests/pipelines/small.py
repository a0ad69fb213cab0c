"""Options of a pipeline that is small enough for a test."""

SMALL = (
    *("--preset", "paper", "--host", "gru4rec", "--dim", "8", "--max-length", "5", "--width", "8"),
    *("--batch-size", "256", "--epochs", "2", "--mode", "held_back"),
)
