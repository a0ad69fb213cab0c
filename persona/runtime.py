"""What every process sets before it uses torch.

With several OpenMP threads and any other busy process, libgomp's spinning barrier makes each parallel region cost
milliseconds; passive waiting and one thread per process remove that. Importing ``persona`` sets the environment (only where
the user has not), ``configure`` sets the number of threads.
"""

import os

ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}


def set_environment() -> None:
    """Set the variables of ``ENVIRONMENT`` that are not set yet. Has to run before torch is imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def configure(threads: int = 1) -> None:
    """Give this process ``threads`` compute threads and deterministic kernels."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    import logging

    import torch

    # What torch says on every start of every process: of a rename inside it, and of a package that only GPUs need.
    for name in ("torch.fx._symbolic_trace", "torch.utils.flop_counter"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
