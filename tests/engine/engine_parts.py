"""Programs small enough to see through, and a byte-level tokenizer for grammars."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from bt_compiler.data import make_example
from bt_compiler.data.example import Example
from bt_compiler.graph.candidate import Candidate, Prompt
from bt_compiler.graph.program import (
    Binding,
    Call,
    Carry,
    Constant,
    Module,
    ModuleKind,
    Program,
    Ref,
    Repeat,
    Retrieve,
    RetrieverRef,
    Signature,
)
from bt_compiler.spec.sections import Generation
from bt_compiler.spec.types import BOOL, INT, NULL, PASSAGES, STR, Field, Type

SPECIES = Type(kind="enum", values=("setosa", "versicolor", "virginica"))
MAYBE = Type(kind="union", options=(INT, NULL))
INVOICE = Type(
    kind="object",
    name="Invoice",
    fields=(
        Field(name="number", type=STR),
        Field(name="total", type=Type(kind="float", minimum=0)),
        Field(name="paid", type=BOOL),
        Field(name="due", type=Type(kind="union", options=(STR, NULL))),
        Field(name="lines", type=Type(kind="list", item=STR, maximum=3)),
    ),
)


def fields(**types: Type) -> tuple[Field, ...]:
    return tuple(Field(name=name, type=t) for name, t in types.items())


def module(
    inputs: dict[str, Type],
    outputs: dict[str, Type],
    *,
    name: str = "m",
    kind: ModuleKind = "predict",
    instructions: str = "Do it.",
    max_tokens: int = 12,
    temperature: float = 0.0,
    format: str = "fields",
    model: str = "default",
) -> Module:
    return Module(
        name=name,
        kind=kind,
        signature=Signature(instructions=instructions, inputs=fields(**inputs), outputs=fields(**outputs)),
        model=model,
        generation=Generation(max_tokens=max_tokens, temperature=temperature),
        format=format,
    )


def call(name: str, of: Module, **inputs: str | Constant) -> Call:
    """A call whose inputs are references as a spec writes them, without the dollar."""
    types = {item.name: item.type for item in of.signature.inputs}
    bound = tuple(Binding(name=key, value=ref(value), type=types[key]) for key, value in inputs.items())
    return Call(name=name, module=of.name, inputs=bound, outputs=of.outputs)


def ref(path: str | Constant) -> Ref | Constant:
    if isinstance(path, Constant):
        return path
    step, dot, field = path.rpartition(".")
    return Ref(step=step if dot else None, field=field)


def single(of: Module) -> Program:
    """The program of one call that gives all outputs of its module."""
    names = [item.name for item in of.signature.inputs]
    return Program(
        name="single",
        inputs=of.signature.inputs,
        nodes=(call("only", of, **{name: name for name in names}),),
        out=tuple(
            Binding(name=item.name, value=Ref(step="only", field=item.name), type=item.type) for item in of.outputs
        ),
        modules=(of,),
        retrievers=(),
    )


def two_hops(*, times: int = 2, until: str | None = None) -> Program:
    """The design's example: query and retrieve in a loop, then answer."""
    query = module({"context": PASSAGES, "question": STR}, {"query": STR, "done": BOOL}, name="next_query")
    answer = module({"context": PASSAGES, "question": STR}, {"answer": STR}, name="answer", instructions="Answer.")
    found = Retrieve(
        name="found", retriever="wiki", query=(Ref(step="hop", field="query"),), k=2, outputs=fields(passages=PASSAGES)
    )
    hops = Repeat(
        name="hops",
        times=times,
        carry=(Carry(name="context", type=PASSAGES, mode="add", value=Ref(step="found", field="passages")),),
        body=(call("hop", query, context="context", question="question"), found),
        out=(Binding(name="last", value=Ref(step="hop", field="query"), type=STR),),
        outputs=fields(context=PASSAGES, last=STR),
        until=None if until is None else Ref(step="hop", field=until),
    )
    return Program(
        name="two_hops",
        inputs=fields(question=STR),
        nodes=(hops, call("final", answer, context="hops.context", question="question")),
        out=(
            Binding(name="answer", value=Ref(step="final", field="answer"), type=STR),
            Binding(name="last", value=Ref(step="hops", field="last"), type=STR),
        ),
        modules=(query, answer),
        retrievers=(RetrieverRef(name="wiki", kind="bm25", k=2),),
    )


def candidate_of(program: Program, **prompts: Prompt) -> Candidate:
    spec = {one.name: Prompt(instructions=one.signature.instructions) for one in program.modules}
    return Candidate(id="c", prompts=spec | prompts)


def examples(rows: Sequence[dict[str, Any]], **labels: Any) -> list[Example]:
    return [make_example(row, labels) for row in rows]


class ByteTokenizer:
    """All single bytes, some longer tokens that cross field borders, and an end token."""

    pieces = (b"setosa", b"ver", b" the", b".\n", b"\nA", b'": ', b'", "', b"null", b"tr", b" Pa", b"12", b"\xc3\xa9x")

    def __init__(self) -> None:
        self.tokens = [bytes([byte]) for byte in range(256)] + list(self.pieces) + [b"<|end|>"]
        self.eos_token_id = len(self.tokens) - 1
        self.bos_token_id = None
        self.special_token_ids = [self.eos_token_id]

    def __call__(self, text: bytes) -> list[int]:
        return list(self._greedy(text))

    def _greedy(self, text: bytes) -> Iterator[int]:
        while text:
            fits = [index for index, token in enumerate(self.tokens[:-1]) if text.startswith(token)]
            best = max(fits, key=lambda index: len(self.tokens[index]))
            yield best
            text = text[len(self.tokens[best]) :]


TOKENIZER = LLTokenizer(TokenizerWrapper(ByteTokenizer()))


def walk(lark: str, seed: int, *, stop: float = 0.02, limit: int = 20_000) -> tuple[str, int]:
    """A random completion of a grammar and its length in tokens; ends early with probability `stop` where it may."""
    rng = random.Random(seed)
    matcher = LLMatcher(TOKENIZER, LLMatcher.grammar_from_lark(lark))
    assert not matcher.is_error(), matcher.get_error()
    taken: list[int] = []
    while not matcher.is_stopped():
        bits = numpy.frombuffer(matcher.compute_bitmask(), dtype=numpy.uint8)
        allowed = numpy.flatnonzero(numpy.unpackbits(bits, bitorder="little")).tolist()
        others = [token for token in allowed if token != TOKENIZER.eos_token]
        if TOKENIZER.eos_token in allowed and (not others or rng.random() < stop):
            break
        token = rng.choice(others)
        assert matcher.consume_token(token), matcher.get_error()
        taken.append(token)
        assert len(taken) < limit
    return TOKENIZER.decode_bytes(taken).decode("utf-8", errors="replace"), len(taken)
