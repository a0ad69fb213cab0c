"""Runs an operation that is killed before each of its changes to the disk in turn."""

import os
import sys
from collections.abc import Callable, Collection, Iterator

KILLED = 77
# Names of audit events; opening a file to write to it counts as one.
CHANGES = frozenset({"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod"})
RENAMES = frozenset({"os.rename"})


def _is_change(event: str, args: tuple, kinds: Collection[str]) -> bool:
    if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)):
        return False
    return event in kinds


def _run_until(point: int, operation: Callable[[], object], kinds: Collection[str]) -> int:
    """Exit code of a process that runs the operation and dies at its change number ``point``, without cleaning up."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = point

    def hook(event, args):
        nonlocal left
        if _is_change(event, args, kinds):
            if not left:
                os._exit(KILLED)
            left -= 1

    sys.addaudithook(hook)
    try:
        operation()
    except BaseException:
        os._exit(1)
    os._exit(0)


def kill_points(
    prepare: Callable[[], object], operation: Callable[[], object], kinds: Collection[str] = CHANGES
) -> Iterator[int]:
    """One item a kill point, each after ``prepare`` and an operation killed there; the last after one that came to its end."""
    for point in range(10_000):
        prepare()
        code = _run_until(point, operation, kinds)
        assert code in (0, KILLED), f"the operation failed by itself before its change {point}"
        yield point
        if not code:
            return
