"""Settings of a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from persona.errors import ConfigError, DataError

KEY_LENGTH = 16


@dataclass(frozen=True)
class ServingConfig:
    """How a service answers.

    Attributes:
        queue: requests that may wait; more are turned away with 429.
        batch: requests answered together, at most.
        target_ms: how long one batch should compute; batches are kept so small that it does not take longer.
        deadline_ms: how long a request may wait if it does not say so itself.
        body_bytes: the largest body; 0 for what the task says.
        poll_seconds: how often the registry is asked for a new version.
        drain_seconds: after a signal to end, how long readiness is denied before connections are closed, so that a
            load balancer notices first.
        api_keys: who may ask; everybody if empty.

    Raises:
        ConfigError: a setting is out of range.
    """

    queue: int = 256
    batch: int = 64
    target_ms: float = 5.0
    deadline_ms: int = 1000
    body_bytes: int = 0
    poll_seconds: float = 10.0
    drain_seconds: float = 0.0
    api_keys: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("queue", "batch", "target_ms", "deadline_ms", "poll_seconds"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, but it has to be positive")
        if self.drain_seconds < 0:
            raise ConfigError(f"drain_seconds is {self.drain_seconds}, but it cannot be negative")


def read_api_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file, one a line; blank lines and those that begin with # do not count.

    Raises:
        DataError: the file cannot be read.
        ConfigError: it holds no key, or one that is too short to be safe.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the API keys in {path} cannot be read ({type(error).__name__}): give a text file") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(f"{path} holds no API key: write one a line, or leave --api-keys out to let everybody ask")
    if any(len(key) < KEY_LENGTH for key in keys):
        raise ConfigError(f"{path} holds an API key of fewer than {KEY_LENGTH} characters: use longer ones")
    return keys
