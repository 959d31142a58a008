"""HTTP to a search server: bounded retries, and errors for one that is down, slow or talks nonsense."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from bt_compiler.canonical import whole
from bt_compiler.engine.keys import read_key
from bt_compiler.errors import BackendError
from bt_compiler.spec.sections import RetrieverSection

if TYPE_CHECKING:
    import httpx

ATTEMPTS = 3
Answer = TypeVar("Answer")
_AGAIN = (429, 500, 502, 503, 504)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a server gives in the place of passages."""

    why: str
    """Goes on from `the server`."""
    passing: bool = False
    """Whether the server may answer when it is asked again."""


class Wire:
    """A connection to the server of one retriever; kept open."""

    def __init__(self, section: RetrieverSection, *, sleep: Callable[[float], None] = time.sleep) -> None:
        import httpx

        self._name = section.name
        self._endpoint = str(section.options["endpoint"]).rstrip("/")
        self._timeout = float(section.options.get("timeout", 10))
        self._client = httpx.Client(timeout=self._timeout, headers=_headers(section))
        self._sleep = sleep

    def ask(self, method: str, path: str, **request: Any) -> Any:
        """The JSON that the server answers. Raises BackendError BTC380 (down), BTC381 (slow), BTC382 (nonsense)."""
        answer = self.try_to_ask(method, path, **request)
        if isinstance(answer, Refusal):
            raise self.nonsense(answer.why, self._endpoint + path)
        return answer

    def try_to_ask(self, method: str, path: str, **request: Any) -> Any:
        """As `ask`, but that an answer with a status of failure is a `Refusal`."""
        import httpx

        url = self._endpoint + path
        for last in self.tries():
            try:
                answer = self._client.request(method, url, **request)
            except httpx.TimeoutException as error:
                if last:
                    raise self._error("BTC381", f"does not answer within {self._timeout:g} s", url) from error
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                if last:
                    raise self._error("BTC380", f"cannot be reached: {error}", url) from error
            else:
                if answer.is_success:
                    return self._json(answer, url)
                if last or not passes(answer.status_code):
                    return Refusal(f"answers status {answer.status_code}: {_reason(answer)}")
        raise AssertionError("the last attempt returns or raises")

    def tries(self) -> Iterator[bool]:
        """Whether it is the last one, for each time that the server is asked something; waits between them."""
        for attempt in range(1, ATTEMPTS):
            yield False
            self._sleep(0.2 * 4 ** (attempt - 1))
        yield True

    def _json(self, answer: Any, url: str) -> Any:
        try:
            return whole(answer.json())
        except (ValueError, RecursionError) as error:
            raise self.nonsense(
                f"answers with something that is not JSON: {answer.text[:80].strip()!r}", url
            ) from error

    def agreed(self, answer: Answer | Refusal) -> Answer:
        """The answer. Raises BackendError BTC382 for a refusal."""
        if isinstance(answer, Refusal):
            raise self.nonsense(answer.why)
        return answer

    def said(self, what: str) -> str:
        """A sentence on the server."""
        return f"the server of retriever `{self._name}` {what}"

    def nonsense(self, what: str, url: str | None = None) -> BackendError:
        """The error for an answer that is not what this kind of server gives."""
        return self._error("BTC382", what, url or self._endpoint)

    def _error(self, code: str, what: str, url: str) -> BackendError:
        help = {
            "BTC380": "see that it runs, and `endpoint`",
            "BTC381": "raise `timeout` (seconds), or ask for fewer passages",
        }.get(code, "see `kind`, `endpoint` and the names of index and fields")
        return BackendError.of(code, self.said(what), help=help, notes=(f"asked {url}",))


def _reason(answer: httpx.Response) -> str:
    if not answer.has_redirect_location:
        return answer.text[:200].strip()
    there = answer.headers["location"].partition("?")[0]  # what follows may be a key
    return f"a redirect to {there[:200]}, and `endpoint` has to name the place itself"


def passes(status: Any) -> bool:
    """Whether a status of failure may be another one the next time."""
    return status in _AGAIN


def _headers(section: RetrieverSection) -> dict[str, str]:
    """The key's header, as the kind of server wants it. Raises BackendError BTC383 where the variable has none."""
    key: Mapping[str, str] | None = section.options.get("api_key")
    if key is None:
        return {}
    try:
        value = read_key(key["env"])
    except ValueError as error:
        help = f"set it to the key of the server of retriever `{section.name}`"
        raise BackendError.of("BTC383", str(error), span=section.span, help=help) from error
    return {"api-key": value} if section.kind == "qdrant" else {"Authorization": f"ApiKey {value}"}
