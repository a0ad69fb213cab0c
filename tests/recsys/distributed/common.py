"""Ranks for tests: threads of this process, and processes that torchrun would start."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import torch.distributed as dist

from persona.training.ranks import Ranks

ROOT = Path(__file__).parents[3]
SECONDS = 1200  # a machine that runs much else besides is slow to start


def on_threads(size, work):
    """What ``work(ranks)`` returns on every one of ``size`` threads that can gather."""
    barrier, box, results = threading.Barrier(size, timeout=30), [None] * size, [None] * size

    class Threads(Ranks):
        def gather(self, tensor):
            box[self.rank] = tensor
            barrier.wait()
            found = list(box)
            barrier.wait()
            return found

    def run(rank):
        results[rank] = work(Threads(rank, size))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def on_processes(size, *arguments):
    """Run ``tests.recsys.distributed.worker`` with ``arguments`` in a process group."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(size)}
    command = [sys.executable, "-m", "tests.recsys.distributed.worker", *map(str, arguments)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env={**os.environ, **place, "RANK": str(rank)}) for rank in range(size)
    ]
    try:
        assert [process.wait(SECONDS) for process in processes] == [0] * size
    finally:
        for process in processes:
            process.kill()


def leave_group():
    """Leave the group of one that a sharded table has needed."""
    if dist.is_initialized():
        dist.destroy_process_group()
