"""`persona doctor`: what is wrong with the installation and the store, and the line that mends it."""

from collections.abc import Callable

from rich.text import Text

from pipelines.console import Output, progress
from pipelines.doctor.finding import Finding
from pipelines.doctor.installation import check_imports, check_packages, check_python, has_gpu, installed
from pipelines.doctor.surroundings import (
    HOST,
    check_database,
    check_folder,
    check_port,
    check_threads,
    check_uri,
    free_port,
    port_taken,
)

__all__ = ["HOST", "Finding", "examine", "free_port", "healthy", "port_taken", "show"]


def examine(port: int) -> list[Finding]:
    """Do all checks; ``port`` is the one meant for the MLflow UI. Takes some seconds, as it imports torch."""
    checks: list[Callable[[], Finding | list[Finding]]] = [
        check_python,
        lambda: check_packages(installed(), has_gpu()),
        check_imports,
        check_uri,
        check_folder,
        check_database,
        lambda: check_port(port),
        check_threads,
    ]
    findings: list[Finding] = []
    with progress("checks", len(checks)) as advance:
        for check in checks:
            found = check()
            findings += found if isinstance(found, list) else [found]
            advance(note=findings[-1].name)
    return findings


def healthy(findings: list[Finding]) -> bool:
    """Whether nothing failed; warnings do not count."""
    return all(finding.status != "fail" for finding in findings)


def show(findings: list[Finding], out: Output) -> None:
    """Print the findings: a table, then the lines that mend what was found."""
    colours = {"ok": "green", "warn": "yellow", "fail": "bold red"}
    rows = [[found.name, Text(found.status, colours[found.status]), found.detail] for found in findings]
    out.table("persona doctor", ["check", "status", "found"], rows)
    for finding in findings:
        if finding.mend:
            out.say(f"mend {finding.name}:  {finding.mend}")
    out.say(
        "nothing failed" if healthy(findings) else "something failed: run the lines above, then persona doctor again"
    )
    out.result({"ok": healthy(findings), "findings": findings})
