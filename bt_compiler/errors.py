"""The error model, whole.

- A bad example is data, not a crash: whatever goes wrong with one example while a program runs becomes an
  `ExampleError` on its trace, is counted and reported, and scores 0.
- A user's mistake is a `BtcError` that carries diagnostics; the command line prints them without a traceback
  and exits with `exit_code`.
- A bug is any other exception: it always shows its traceback and exits with 2.

Nothing is caught outside named boundaries, and nothing that stops work reports success.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from bt_compiler.diagnostics import Diagnostic, Span, render


class BtcError(Exception):
    """A mistake that a person can mend, as one or more diagnostics."""

    exit_code = 1

    def __init__(self, diagnostics: Sequence[Diagnostic]) -> None:
        self.diagnostics = tuple(diagnostics)
        super().__init__(render(self.diagnostics))

    @property
    def code(self) -> str:
        """Of the first diagnostic: `BTC562`, explained by `btc explain BTC562`."""
        return self.diagnostics[0].code

    @property
    def help(self) -> str | None:
        """What the first diagnostic says to do."""
        return self.diagnostics[0].help

    def __reduce__(self) -> tuple[object, ...]:
        """From what it was made of, and not from its text: an error goes to another process as it is."""
        return type(self), (self.diagnostics,)

    @classmethod
    def of(
        cls,
        code: str,
        message: str,
        *,
        help: str | None = None,
        span: Span | None = None,
        notes: Sequence[str] = (),
    ) -> Self:
        """An error of one diagnostic."""
        return cls([Diagnostic(code=code, message=message, help=help, span=span, notes=tuple(notes))])


class SpecError(BtcError):
    """The spec does not parse, validate, resolve or type-check (BTC0xx to BTC2xx)."""


class DataError(BtcError):
    """A data file or corpus is not what the spec says (BTC3xx)."""


class CompileError(BtcError):
    """Optimising cannot go on, or a gate was not met (BTC4xx)."""


class BackendError(BtcError):
    """A model, engine or server cannot do what is asked (BTC50x to BTC54x)."""


class BundleError(BtcError):
    """A bundle is missing, damaged, too new or made for another model (BTC55x on)."""


class UsageError(BtcError):
    """The command line is wrong in a way that click cannot see (BTC59x)."""

    exit_code = 2


class ExampleError(Exception):
    """What went wrong with one example: ends on its trace, never stops the batch."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{code}: {message}")

    def __reduce__(self) -> tuple[object, ...]:
        """As that of `BtcError`."""
        return type(self), (self.code, self.message)
