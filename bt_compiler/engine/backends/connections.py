"""HTTP clients for many requests at once, each client with one connection to each server.

One client for all would do, but its pool looks at every connection whenever a request begins or ends: with 256 in
flight that took three times the work of the requests themselves. Knows HTTP; nothing of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx


class Connections:
    """Clients that wait for their next request. All methods run on one event loop."""

    def __init__(self, *, headers: httpx.Headers, timeout: float) -> None:
        """`timeout`: seconds without a byte of the answer."""
        self._settings: dict[str, Any] = {
            "headers": headers,
            "timeout": httpx.Timeout(timeout, connect=10.0),
            "verify": httpx.create_ssl_context(),  # takes long: read once
        }
        self._all: list[httpx.AsyncClient] = []
        self._idle: list[httpx.AsyncClient] = []

    @contextmanager
    def lent(self) -> Iterator[httpx.AsyncClient]:
        """A client for one request after the other; the one that was used last, for its connections are open."""
        if not self._idle:
            self._idle.append(httpx.AsyncClient(**self._settings))
            self._all.append(self._idle[-1])
        client = self._idle.pop()
        try:
            yield client
        finally:
            self._idle.append(client)

    async def close(self) -> None:
        """Closes all, whatever is under way."""
        for client in self._all:
            await client.aclose()
