"""The candidate that a program starts from, and how candidates are named."""

from __future__ import annotations

from collections.abc import Mapping

from bt_compiler.canonical import digest
from bt_compiler.graph.candidate import Adapter, Candidate, Prompt
from bt_compiler.graph.program import Program
from bt_compiler.graph.serial_candidate import prompt_to_json

ZERO_SHOT = "zero-shot"
"""Id of the candidate that is the spec as written."""


def spec_candidate(program: Program) -> Candidate:
    """The spec's instructions and demos, the base model."""
    prompts = {
        module.name: Prompt(instructions=module.signature.instructions, demos=module.demos)
        for module in program.modules
    }
    return Candidate(id=ZERO_SHOT, prompts=prompts)


def candidate_id(prompts: Mapping[str, Prompt], adapters: Mapping[str, Adapter]) -> str:
    """12 hex digits over the contents of prompts and adapters: equal contents, equal id."""
    contents = {
        "prompts": {name: prompt_to_json(prompt) for name, prompt in prompts.items()},
        "adapters": {key: adapter.sha256 for key, adapter in adapters.items()},
    }
    return digest(contents)[:12]
