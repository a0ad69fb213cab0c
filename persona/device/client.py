"""A client of the cloud's service, for devices: standard library only, one kept-alive connection.

Requests that the service turns away for the moment (429, 503) are sent again after the time it names (Retry-After); those
that find no service after a growing pause. What remains is a ``CloudError``, and the device goes on with what it has.
"""

from __future__ import annotations

import http.client
import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from persona.errors import ConfigError, PersonaError

BINARY = "application/octet-stream"
MOST_BYTES = 1 << 26
FIRST_PAUSE = 0.1
_AGAIN = (429, 503)


class CloudError(PersonaError):
    """The service gave no answer, or refused.

    Attributes:
        status: of HTTP; 0 where no answer came at all.
        kind: the service's word for the fault, ``offline`` where no answer came.
    """

    def __init__(self, sentence: str, status: int = 0, kind: str = "offline") -> None:
        super().__init__(sentence)
        self.status, self.kind = status, kind


@dataclass(frozen=True)
class CloudEdit:
    """An edit from the service.

    Attributes:
        level: what was made; ``host`` where there is nothing to apply.
        message: what ``Device.receive`` takes.
        prototype: nearest prototype, if there is a bank.
        host: digest of the host that it is for.
        bank: version of the bank that it speaks of; empty where there is none.
    """

    level: str
    message: bytes
    prototype: int | None
    host: str
    bank: str


class CloudClient:
    """A connection to a service. Use one a thread.

    Args:
        url: for example ``http://127.0.0.1:8080``.
        api_key: where the service asks for one.
        timeout: seconds to wait for a connection or an answer.
        retries: how often a request is sent again.
        longest_wait: seconds between two attempts at most; a longer Retry-After ends the attempts.
        sleep: waits; for tests.

    Attributes:
        sent: bytes of bodies sent, attempts that failed included.
        received: bytes of bodies received.
        retried: attempts that followed another one.

    Raises:
        ConfigError: the address is not one of HTTP.

    Example::

        with CloudClient("http://127.0.0.1:8080") as cloud:
            edit = cloud.edit({"history": ["1193", "661"]}, "basis", host=bundle.host)
            device.receive(edit.message, edit.level)
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout: float = 5.0,
        retries: int = 3,
        longest_wait: float = 5.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is no address of a service: give one such as http://127.0.0.1:8080")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._root = parts.path.rstrip("/")
        self._headers = {} if api_key is None else {"X-API-Key": api_key}
        self.url, self.retries, self.longest_wait, self._sleep = url, retries, longest_wait, sleep
        self.sent = self.received = self.retried = 0

    def __enter__(self) -> CloudClient:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; the next request opens another one."""
        self._connection.close()

    def edit(
        self, request: Mapping[str, Any], level: str = "basis", *, host: str | None = None, bank: str | None = None
    ) -> CloudEdit:
        """Ask for an edit.

        Args:
            request: what the task sends, for example ``{"history": [...]}``.
            level: ``prototype`` (1 byte), ``basis`` (at most 64 bytes) or ``full``.
            host: digest of the device's host, so that an edit of another one is refused at once.
            bank: version of the device's bank, likewise.

        Raises:
            CloudError: no answer, or a refusal; 409 means that the device has to be updated: take the service's ``bank``,
                and if that is of another host, a new bundle.
        """
        body = {**request, "level": level} | {k: v for k, v in (("host", host), ("bank", bank)) if v is not None}
        data, headers = self._send("POST", "/v1/edits", body, BINARY)
        told = {name: headers.get(f"x-persona-{name}", "") for name in ("level", "prototype", "host", "bank")}
        if headers.get("content-type") != BINARY or not told["level"]:
            raise CloudError(
                f"{self.url} answers, but is no service of this release: check the address", 200, "foreign"
            )
        prototype = int(told["prototype"]) if told["prototype"].isdecimal() else None
        return CloudEdit(told["level"], data, prototype, told["host"], told["bank"])

    def bank(self) -> bytes:
        """The prototype bank that the service answers with, as ``Device.receive_bank`` takes it.

        Raises:
            CloudError: no answer, or there is no bank.
        """
        data, headers = self._send("GET", "/v1/prototypes", None, BINARY)
        if headers.get("content-type") != BINARY:
            raise CloudError(
                f"{self.url} answers, but is no service of this release: check the address", 200, "foreign"
            )
        return data

    def ask(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """JSON of any address: POST with a body, GET without.

        Raises:
            CloudError: no answer, or a refusal.
        """
        data, _ = self._send("GET" if body is None else "POST", path, body, "application/json")
        try:
            return json.loads(data)
        except ValueError as error:
            raise CloudError(f"{self.url}{path} answers no JSON: check the address", 200, "foreign") from error

    def ready(self) -> bool:
        """Whether the service says that requests should be sent to it."""
        try:
            return self._once("GET", "/readyz", None, "application/json")[0] == 200
        except (OSError, http.client.HTTPException):
            self.close()
            return False

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, accept: str
    ) -> tuple[bytes, dict[str, str]]:
        """Body and headers (lower case) of an answer 200, after as many attempts as it takes."""
        attempt = 0
        while True:
            try:
                status, data, headers = self._once(method, path, body, accept)
            except (OSError, http.client.HTTPException) as error:
                self.close()
                failure = CloudError(f"{self.url} gives no answer ({type(error).__name__}): go on offline")
                # A random part, so that many devices that lost one service do not come back at once.
                pause = FIRST_PAUSE * 2**attempt * random.uniform(0.5, 1.5)
            else:
                if status == 200:
                    return data, headers
                failure = _refusal(status, data)
                pause = _seconds(headers.get("retry-after"))
                if status not in _AGAIN or pause > self.longest_wait:
                    raise failure
            if attempt >= self.retries:
                raise failure
            attempt += 1
            self.retried += 1
            self._sleep(min(pause, self.longest_wait))

    def _once(
        self, method: str, path: str, body: Mapping[str, Any] | None, accept: str
    ) -> tuple[int, bytes, dict[str, str]]:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Accept": accept, **self._headers} | ({} if body is None else {"Content-Type": "application/json"})
        self.sent += len(content or b"")
        self._connection.request(method, self._root + path, content, headers)
        answer = self._connection.getresponse()
        data = answer.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise http.client.HTTPException("the answer is too large")
        self.received += len(data)
        return answer.status, data, {name.lower(): value for name, value in answer.getheaders()}


def _refusal(status: int, data: bytes) -> CloudError:
    """What the service says of a request that it does not answer."""
    try:
        told = json.loads(data)
        return CloudError(str(told["error"]), status, str(told["kind"]))
    except (ValueError, KeyError, TypeError):
        return CloudError(f"the service answered with status {status}: ask again later", status, "http")


def _seconds(retry_after: str | None) -> float:
    """Retry-After in seconds; one that is missing or a date counts as one second."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() else 1.0
