"""How a process is set up: threads, and blocks of memory that are used again."""

import platform
import subprocess
import sys

import pytest

CHECK = """
from pathlib import Path
{setup}
import torch

def resident():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) >> 10

torch.ones(1)
before = resident()
block = torch.ones(64 << 20)
del block
print(torch.get_num_threads(), resident() - before)
"""


def kept(setup: str) -> tuple[int, int]:
    """Threads, and MiB that a process still has after a block of 256 MiB was freed."""
    found = subprocess.run(
        [sys.executable, "-c", CHECK.format(setup=setup)], capture_output=True, text=True, check=True
    )
    threads, memory = found.stdout.split()
    return int(threads), int(memory)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_large_blocks_are_used_again_if_they_are_to_be():
    threads, memory = kept("from persona import runtime\nruntime.configure(threads=1)")
    assert threads == 1
    assert memory < 100, "a process that was not told gives them back"
    assert kept("from persona import runtime\nruntime.keep_freed_memory()")[1] > 200
