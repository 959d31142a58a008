"""The typed program and what is trainable about it.

In the order data flows: `signatures`, `bindings`, `loops`, `steps` -> `lower` -> `hashing` -> `verify`; then `dump`
and `serial` show and store a `Program`, `zero_shot` gives the `Candidate` it starts from.
"""

from bt_compiler.graph.candidate import SHARED, Adapter, Candidate, Demo, Prompt
from bt_compiler.graph.dump import program_mermaid, program_text
from bt_compiler.graph.judges import Judge, Judges
from bt_compiler.graph.lower import Lowered, lower, lower_with_warnings
from bt_compiler.graph.meetings import Meeting, meetings
from bt_compiler.graph.program import (
    Binding,
    Block,
    Call,
    Carry,
    Case,
    Constant,
    Map,
    Module,
    Node,
    Program,
    Ref,
    Repeat,
    Rerank,
    Retrieve,
    RetrieverRef,
    Sample,
    Signature,
    Switch,
    ToolRef,
    UseTool,
    Value,
)
from bt_compiler.graph.serial import program_from_json, program_to_json
from bt_compiler.graph.serial_candidate import candidate_from_json, candidate_to_json, prompt_to_json
from bt_compiler.graph.verify import InvalidProgram, verify
from bt_compiler.graph.walk import dearest, nodes, visits
from bt_compiler.graph.zero_shot import candidate_id, spec_candidate

__all__ = [
    "SHARED",
    "Adapter",
    "Binding",
    "Block",
    "Call",
    "Candidate",
    "Carry",
    "Case",
    "Constant",
    "Demo",
    "InvalidProgram",
    "Judge",
    "Judges",
    "Lowered",
    "Map",
    "Meeting",
    "Module",
    "Node",
    "Program",
    "Prompt",
    "Ref",
    "Repeat",
    "Rerank",
    "Retrieve",
    "RetrieverRef",
    "Sample",
    "Signature",
    "Switch",
    "ToolRef",
    "UseTool",
    "Value",
    "candidate_from_json",
    "candidate_id",
    "candidate_to_json",
    "dearest",
    "lower",
    "lower_with_warnings",
    "meetings",
    "nodes",
    "program_from_json",
    "program_mermaid",
    "program_text",
    "program_to_json",
    "prompt_to_json",
    "spec_candidate",
    "verify",
    "visits",
]
