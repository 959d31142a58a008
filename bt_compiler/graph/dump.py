"""A program for people: as text and as a Mermaid flowchart. The same program gives the same text, byte for byte."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from bt_compiler.graph.program import (
    RANKED_PASSAGE,
    RANKED_QUERY,
    Binding,
    Block,
    Call,
    Map,
    Module,
    Node,
    Program,
    Ref,
    Repeat,
    Rerank,
    Retrieve,
    Sample,
    Switch,
    UseTool,
    Value,
)
from bt_compiler.graph.walk import bodies, inner_values_of, nodes_of, values_of
from bt_compiler.spec import Field, show_type


def program_text(program: Program, judges: Iterable[Module] = ()) -> str:
    """The program in the words of the spec, types and short hashes beside them; ends with a line break. `judges`:
    modules of the metric.
    """
    lines = [f"program {program.name}({_fields(program.inputs)})"]
    lines += _body(program.nodes, "  ")
    lines.append(f"  out {', '.join(f'{_bound(item)}: {show_type(item.type)}' for item in program.out)}")
    for module in program.modules:
        lines += ["", *_module("module", module)]
    for module in judges:
        lines += ["", *_module("judge", module)]
    for retriever in program.retrievers:
        lines += ["", f"retriever {retriever.name}: {retriever.kind}, k={retriever.k}"]
    for tool in program.tools:
        lines += ["", f"tool {tool.name}: {tool.kind}", f"  {_fields(tool.inputs)} -> {_fields(tool.outputs)}"]
    return "\n".join(lines) + "\n"


def _fields(fields: Sequence[Field]) -> str:
    return ", ".join(f"{item.name}: {show_type(item.type)}" for item in fields)


def _shown(value: Value) -> str:
    return str(value) if isinstance(value, Ref) else json.dumps(value.value, ensure_ascii=False)


def _bound(binding: Binding) -> str:
    return f"{binding.name}={_shown(binding.value)}"


def _body(body: Sequence[Node], indent: str) -> Iterator[str]:
    for node in body:
        gives = f" -> {_fields(node.outputs)}  #{node.hash[:8]}"
        match node:
            case Call():
                given = ", ".join(_bound(item) for item in node.inputs)
                called = f"{_declared(node)}({given})" + (" per visit" if node.slots else "")
                yield f"{indent}{node.name} = call {called}{gives}"
            case Retrieve():
                yield f"{indent}{node.name} = retrieve {_asked(node)}{gives}"
            case UseTool():
                given = ", ".join(_bound(item) for item in node.inputs)
                yield f"{indent}{node.name} = tool {node.tool}({given}){gives}"
            case Rerank():
                yield f"{indent}{node.name} = {_head(node)}{gives}"
                yield from _body(node.body, f"{indent}  ")
            case Repeat() | Map() | Sample():
                yield f"{indent}{node.name} = {_head(node)}{gives}"
                yield from _body(node.body, f"{indent}  ")
                for carry in node.carry if isinstance(node, Repeat) else ():
                    start = "" if carry.start is None else f" from {_shown(carry.start)}"
                    verb = "add" if carry.mode == "add" else "next"
                    yield f"{indent}  carry {carry.name}{start}: {verb} {_shown(carry.value)}"
                for binding in node.out:
                    yield f"{indent}  out {_bound(binding)}"
            case Switch():
                yield f"{indent}{node.name} = {_head(node)}{gives}"
                for case in node.cases:
                    yield f"{indent}  case {case.label}"
                    yield from _body(case.body, f"{indent}    ")
                    for binding in case.out:
                        yield f"{indent}    out {_bound(binding)}"


def _declared(node: Call) -> str:
    return node.module.partition("#")[0]


def _head(node: Block) -> str:
    """The verb of a block and what belongs to it."""
    match node:
        case Repeat():
            return f"repeat {node.times}" + ("" if node.until is None else f" until {node.until}")
        case Switch():
            return f"switch {node.value}"
        case Map():
            return f"map {node.over} as {node.item}, at most {node.at_most}"
        case Sample():
            pick = "majority" if node.best is None else f"best {node.best}"
            return f"sample {node.times} at {node.temperature:g}, pick {pick}"
        case Rerank():
            return f"retrieve {_asked(node)} of {node.depth} by {_shown(node.score.value)}"


def _asked(node: Retrieve | Rerank) -> str:
    texts = ", ".join(_shown(text) for text in node.query)
    query = texts if len(node.query) == 1 else f"[{texts}]"
    known = "" if node.known is None else f", known={_shown(node.known)}"
    return f"{node.retriever}(query={query}{known}, k={node.k})"


def _module(what: str, module: Module) -> Iterator[str]:
    signature = module.signature
    yield f"{what} {module.name}: {module.kind} on {module.model}, format {module.format}"
    likely = "".join(f", {item.name}: probability of {item.type.probability_of}" for item in signature.confidences)
    yield f"  {_fields(signature.inputs)} -> {_fields(module.outputs)}{likely}"
    yield f"  {json.dumps(signature.instructions, ensure_ascii=False)}"
    if module.tools:
        tools = (f"{tool.name}({_fields(tool.inputs)}) -> {_fields(tool.outputs)}" for tool in module.tools)
        yield f"  at most {module.at_most} of {', '.join(tools)}"
    for demo in module.demos:
        yield f"  demo {json.dumps({**demo.inputs, **demo.outputs}, ensure_ascii=False)}"


def program_mermaid(program: Program) -> str:
    """The program as a Mermaid flowchart: steps as boxes, blocks as frames, references as arrows."""
    lines = ["flowchart TD"]
    lines += [f'  {_input_id(item.name)}(["{item.name}: {_quoted(show_type(item.type))}"])' for item in program.inputs]
    using = {module.name: ", ".join(tool.name for tool in module.tools) for module in program.modules if module.tools}
    lines += _boxes(program.nodes, "", "  ", using)
    out = ", ".join(f"{item.name}: {show_type(item.type)}" for item in program.out)
    lines.append(f'  out_(["{_quoted(out)}"])')
    names = {item.name: _input_id(item.name) for item in program.inputs}
    arrows = list(_arrows(program.nodes, "", names))
    tops = names | {f"{node.name}.": _id(node.name) for node in program.nodes}
    arrows += [_arrow(item.value, "out_", tops) for item in program.out]
    lines += dict.fromkeys(arrow for arrow in arrows if arrow)
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return (
        text.replace("&", "&amp;")
        .replace('"', "&quot;")
        .replace("<", "&lt;")
        .replace("[", "&#91;")
        .replace("]", "&#93;")
    )


def _input_id(name: str) -> str:
    return "in_" + _id(name).removeprefix("n_")


def _id(path: str) -> str:
    return "n_" + re.sub(r"[^A-Za-z0-9_]", lambda match: f"_{ord(match[0]):x}_", path.replace("/", "__"))


def _boxes(body: Sequence[Node], prefix: str, indent: str, using: Mapping[str, str]) -> Iterator[str]:
    """`using`: the tools of a `react` module, by its name."""
    for node in body:
        path = prefix + node.name
        match node:
            case Call():
                tools = f"<br/>with {using[node.module]}" if node.module in using else ""
                yield f'{indent}{_id(path)}["{node.name}<br/>call {_declared(node)}{tools}"]'
            case Retrieve():
                yield f'{indent}{_id(path)}[("{node.name}<br/>retrieve {node.retriever}, k={node.k}")]'
            case UseTool():
                yield f'{indent}{_id(path)}{{{{"{node.name}<br/>tool {node.tool}"}}}}'
            case Repeat() | Map() | Sample() | Rerank():
                yield f'{indent}subgraph {_id(path)}["{node.name}: {_quoted(_head(node))}"]'
                yield from _boxes(node.body, f"{path}/", f"{indent}  ", using)
                yield f"{indent}end"
            case Switch():
                yield f'{indent}subgraph {_id(path)}["{node.name}: {_quoted(_head(node))}"]'
                for case in node.cases:
                    place = f"{path}/{case.label}"
                    if case.body:
                        yield f'{indent}  subgraph {_id(place)}["{_quoted(case.label)}"]'
                        yield from _boxes(case.body, f"{place}/", f"{indent}    ", using)
                        yield f"{indent}  end"
                    else:
                        yield f'{indent}  {_id(place)}["{_quoted(case.label)}"]'
                yield f"{indent}end"


def _arrows(body: Sequence[Node], prefix: str, outside: dict[str, str]) -> Iterator[str]:
    names = outside | {f"{node.name}.": _id(prefix + node.name) for node in body}
    for node in body:
        path = prefix + node.name
        for value in values_of(node):
            yield _arrow(value, _id(path), names)
        if isinstance(node, Repeat):
            yield from _loop_arrows(node, path, names)
        elif isinstance(node, Map):
            yield from _arrows(node.body, f"{path}/", {**names, node.item: ""})
        elif isinstance(node, Rerank):
            yield from _arrows(node.body, f"{path}/", {**names, RANKED_QUERY: "", RANKED_PASSAGE: ""})
        elif isinstance(node, Block):
            for inner, inside in bodies(node):
                yield from _arrows(inside, f"{path}/{inner}", names)


def _loop_arrows(node: Repeat, path: str, outside: dict[str, str]) -> Iterator[str]:
    """The inside of a loop, and a dotted arrow from what is carried to the steps that read it on the next visit."""
    inside = outside | {carry.name: "" for carry in node.carry}
    yield from _arrows(node.body, f"{path}/", inside)
    body = {inner.name: _id(f"{path}/{inner.name}") for inner in node.body}
    for carry in node.carry:
        if not isinstance(carry.value, Ref) or carry.value.step not in body:
            continue
        source = body[carry.value.step]
        for inner_path, inner in nodes_of(node.body, f"{path}/"):
            reads = [*values_of(inner), *(inner_values_of(inner) if isinstance(inner, Block) else ())]
            if Ref(step=None, field=carry.name) in reads:
                yield f"  {source} -. {carry.name} .-> {_id(inner_path)}"


def _arrow(value: Value, target: str, names: dict[str, str]) -> str:
    if not isinstance(value, Ref):
        return ""
    source = names.get(value.field if value.step is None else f"{value.step}.", "")
    label = value.field if value.step is not None else ""
    if not source:
        return ""
    return f"  {source} -->|{label}| {target}" if label else f"  {source} --> {target}"
