"""Grammars by llguidance: what a completion may go on with, and what it must.

Knows tokens and grammars; nothing of models or batches beyond a mask for several rows at once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy
import torch
from llguidance import LLExecutor, LLMatcher
from llguidance.hf import from_tokenizer
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask_par
from torch import Tensor

from bt_compiler.engine.request import OutputGrammar
from bt_compiler.errors import ExampleError

_MEMORY = 256


class Grammars:
    """Compiled grammars of one tokenizer."""

    def __init__(self, tokenizer: Any, *, vocab: int, stop_ids: frozenset[int]) -> None:
        self.vocab = vocab
        self._tokenizer = from_tokenizer(tokenizer, n_vocab=vocab, eos_token=sorted(stop_ids) or None)
        self._executor = LLExecutor()
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()

    def start(self, grammar: OutputGrammar) -> Matcher:
        """A matcher at the start of the grammar. Raises ExampleError (BTC511) for one that does not compile."""
        compiled = self._compiled.get(grammar.lark)
        if compiled is None:
            compiled = LLMatcher(self._tokenizer, LLMatcher.grammar_from_lark(grammar.lark))
            if compiled.is_error():
                reason = compiled.get_error().strip().splitlines()[0]
                raise ExampleError("BTC511", f"the output grammar cannot be compiled: {reason}")
            self._compiled[grammar.lark] = compiled
            if len(self._compiled) > _MEMORY:
                self._compiled.popitem(last=False)
        return Matcher(compiled)

    def allowed(self, matchers: Sequence[Matcher]) -> Tensor:
        """(matchers, vocab) True where the next token may be."""
        bits = allocate_token_bitmask(len(matchers), self.vocab)
        fill_next_token_bitmask_par(self._executor, [(item.inner, index) for index, item in enumerate(matchers)], bits)
        bools = numpy.unpackbits(bits.view(numpy.uint8), axis=1, count=self.vocab, bitorder="little")
        return torch.from_numpy(bools.view(numpy.bool_))


class Matcher:
    """One completion on its way through a grammar."""

    def __init__(self, compiled: LLMatcher) -> None:
        """`compiled` stays at the grammar's start."""
        self._compiled = compiled
        self.inner = compiled.deep_copy()

    def restart(self) -> None:
        """Goes back to the grammar's start."""
        self.inner = self._compiled.deep_copy()

    def take(self, token: int) -> None:
        """Goes on with a token that was allowed. Raises ExampleError (BTC511) where the grammar's limits are hit."""
        if not self.inner.consume_token(token) or self.inner.is_error():
            raise ExampleError("BTC511", f"the output grammar failed: {_reason(self.inner)}")

    def forced(self) -> list[int]:
        """Tokens that alone can come next, already taken."""
        tokens = [int(token) for token in self.inner.compute_ff_tokens()]
        if tokens and not self.inner.consume_tokens(tokens):
            raise ExampleError("BTC511", f"the output grammar failed: {_reason(self.inner)}")
        return tokens

    def ended(self) -> bool:
        """Whether nothing can follow."""
        return bool(self.inner.is_stopped())


def _reason(matcher: LLMatcher) -> str:
    lines = matcher.get_error().strip().splitlines()
    return lines[0] if lines else "a token was refused"
