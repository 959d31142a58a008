"""`data` of the spec to train, dev and test: disjoint by content, the same on every machine.

One path is split by content hash: rows are sorted by it, exact copies stay together, so that neither the order of the
file nor a seed decides what is held out. Three paths are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from bt_compiler.canonical import canonical_json
from bt_compiler.data.example import Example, Splits, make_example
from bt_compiler.data.rows import Located, Wanted, examples_of
from bt_compiler.data.sources import drawn_together, read_sources
from bt_compiler.data.table import Table, cut_short
from bt_compiler.diagnostics import Diagnostic, did_you_mean
from bt_compiler.errors import DataError
from bt_compiler.spec import Field
from bt_compiler.spec.sections import DataSection, Extraction, SourceSection
from bt_compiler.spec.sourcing import DEFAULT_SPLIT, are_counts
from bt_compiler.spec.tree import position

NAMES = ("train", "dev", "test")
DEV_SHARE = 0.25
"""Share of train that becomes dev where the spec names no dev."""


class Loaded(NamedTuple):
    """Splits, and what a person should know of how they came about."""

    splits: Splits
    notes: tuple[Diagnostic, ...]


_Split = list[Located]


def load_splits(
    data: DataSection, *, inputs: Sequence[Field], labels: Sequence[Field], optional: Sequence[Field] = ()
) -> Splits:
    """The examples with these inputs and labels; other columns are not read.

    `optional` are labels that are taken where the data has their column. Exact copies within a split are kept, with
    ids of their own (`Example.id`). Raises DataError with everything found in the files (BTC30x to BTC33x).
    """
    wanted = _wanted(data, inputs, labels, optional)
    _check_columns(data, wanted)
    return _parted(*_read_all(_sources(data), wanted), data).splits


def check_data(
    data: DataSection, *, inputs: Sequence[Field], labels: Sequence[Field], optional: Sequence[Field] = ()
) -> Loaded:
    """As `load_splits`, with notes: proportions taken, copies found, splits that are missing. Raises BTC310 too where
    `columns` maps an optional label to a column that no split has: else a mistyped one would lose the label in silence.
    Where rows were left unread that may have it, BTC310 is a warning.
    """
    wanted = _wanted(data, inputs, labels, optional)
    _check_columns(data, wanted)
    rows, notes = _read_all(_sources(data), wanted)
    unread = _require_mapped(data, wanted, [part[0].table for part in rows.values() if part])
    return _parted(rows, [*unread, *notes], data)


def _parted(rows: Mapping[str, _Split], notes: Sequence[Diagnostic], data: DataSection) -> Loaded:
    """`notes`: what there is to know of the rows already."""
    parts, more = _split_by_content(rows["data"], data) if data.path is not None else _given_splits(rows, data)
    more += [note for name, part in zip(NAMES, parts, strict=True) if (note := _copies_note(name, part)) is not None]
    train, dev, test = (_numbered(part) for part in parts)
    return Loaded(Splits(train, dev, test), (*notes, *more))


def _wanted(data: DataSection, inputs: Sequence[Field], labels: Sequence[Field], optional: Sequence[Field]) -> Wanted:
    return Wanted(
        inputs=tuple(inputs), labels=tuple(labels), optional=tuple(optional), columns=data.columns, extract=data.extract
    )


def _require_mapped(data: DataSection, wanted: Wanted, tables: Sequence[Table]) -> list[Diagnostic]:
    """Raises DataError BTC310 at the keys of `columns`; where not all columns are known, warnings instead."""
    columns = list(dict.fromkeys(column for table in tables for column in table.columns))
    whole = all(table.whole for table in tables)
    where = "the data has no" if whole else "no row up to `limit` has a"
    found = [
        Diagnostic(
            code="BTC310",
            message=f"{where} column `{wanted.column(item)}`, which `columns` reads label `{item.name}` from",
            span=data.spans.get(("columns", item.name), data.span),
            severity="error" if whole else "warning",
            help=did_you_mean(wanted.column(item), columns, what="the columns"),
        )
        for item in wanted.optional
        if item.name in data.columns and wanted.column(item) not in columns
    ]
    if found and whole:
        raise DataError(sorted(found, key=position))
    return found


def load_examples(
    source: SourceSection,
    *,
    columns: Mapping[str, str],
    inputs: Sequence[Field],
    labels: Sequence[Field],
    optional: Sequence[Field] = (),
    extract: Mapping[str, Extraction] | None = None,
) -> tuple[Example, ...]:
    """Every row of one source as an example, in order, nothing split off. Raises DataError as `load_splits`."""
    wanted = Wanted(
        inputs=tuple(inputs), labels=tuple(labels), optional=tuple(optional), columns=columns, extract=extract or {}
    )
    return _numbered(_read_all({"data": source}, wanted)[0]["data"])


def _check_columns(data: DataSection, wanted: Wanted) -> None:
    """Raises DataError BTC313 for names that mean nothing, with what is wrong with the sources beside."""
    fields = {item.name for item in (*wanted.inputs, *wanted.labels, *wanted.optional)}
    labels = [item.name for item in wanted.labels]
    found = [
        Diagnostic(
            code="BTC313",
            message=f"`columns` maps `{name}`, which is neither input nor label",
            span=data.spans.get(("columns", name), data.span),
            help=did_you_mean(name, fields, what="inputs and labels"),
        )
        for name in data.columns
        if name not in fields
    ]
    if found:  # which columns are missing is not known before
        wanted = replace(wanted, inputs=(), labels=(), optional=())
    if data.stratify is not None and data.stratify not in labels:
        message = f"`stratify` names `{data.stratify}`, which is no label"
        help = did_you_mean(data.stratify, labels, what="labels")
        span = data.spans.get(("stratify",), data.span)
        found.append(Diagnostic(code="BTC313", message=message, span=span, help=help))
    if not found:
        return
    try:
        _read_all(_sources(data), wanted)
    except DataError as error:
        found += error.diagnostics
    raise DataError(sorted(found, key=position))


def _sources(data: DataSection) -> dict[str, SourceSection]:
    """By split, or under `data` the one that is split."""
    if data.path is not None:
        return {"data": data.path}
    return {name: source for name in NAMES if (source := getattr(data, name)) is not None}


def _read_all(sources: Mapping[str, SourceSection], wanted: Wanted) -> tuple[dict[str, _Split], list[Diagnostic]]:
    """The examples of each source, by split, and notes; the findings of all of them at once."""
    found: dict[str, _Split] = {}
    notes: list[Diagnostic] = []
    findings: list[Diagnostic] = []
    for names in drawn_together(sources):
        together = {name: sources[name] for name in names}
        try:
            tables, more = read_sources(together, wanted.names())
            found |= {name: examples_of(table, wanted) for name, table in tables.items()}
            notes += more
        except DataError as error:
            findings += [item for item in error.diagnostics if item not in findings]
    if findings:
        raise DataError(findings)
    return found, notes


def _given_splits(rows: Mapping[str, _Split], data: DataSection) -> tuple[list[_Split], list[Diagnostic]]:
    parts = {name: rows[name] for name in NAMES if name in rows}
    notes: list[Diagnostic] = []
    _refuse_overlap(parts)
    if "dev" not in parts:
        parts["train"], parts["dev"] = _split_off_dev(parts["train"], data)
        notes.append(_dev_note(len(parts["dev"]), data))
    if "test" not in parts:
        parts["test"] = []
        notes.append(_test_note(data))
    return [parts[name] for name in NAMES], notes


def _dev_note(rows: int, data: DataSection) -> Diagnostic:
    message = f"no `dev` given: {rows} rows of train were split off by content hash"
    return Diagnostic(code="BTC331", message=message, span=data.span, severity="note")


def _test_note(data: DataSection) -> Diagnostic:
    message = "no `test` given: the bundle will have no held-out score"
    return Diagnostic(code="BTC332", message=message, span=data.span, severity="note")


def _refuse_overlap(parts: Mapping[str, _Split]) -> None:
    seen: dict[str, tuple[str, Located]] = {}
    findings: list[Diagnostic] = []
    for name, part in parts.items():
        for item in part:
            first_name, first = seen.setdefault(item.example.id, (name, item))
            if first_name == name:
                continue
            findings.append(
                Diagnostic(
                    code="BTC323",
                    message=f"an example of `{name}` is in `{first_name}` too",
                    span=item.table.span(item.row),
                    notes=(f"the same inputs and labels stand in {first.table.name}:{first.row.line}",),
                    help="leave it out of one of them, or give one `path` and let it be split",
                )
            )
    if findings:
        raise DataError(cut_short(findings, "examples that are in two splits"))


def _split_off_dev(train: _Split, data: DataSection) -> tuple[_Split, _Split]:
    """(rest, dev), both in the order of the file."""
    dev, _ = _take(_dealt(train, data.stratify), max(1, round(DEV_SHARE * len(train))))
    chosen = {item.example.id for item in dev}
    rest = [item for item in train if item.example.id not in chosen]
    if not rest or not dev:
        raise DataError.of(
            "BTC324",
            f"too few rows in train to split a dev off: {len(train)}",
            span=data.train.span if data.train is not None else data.span,
            help="name a `dev` file, or give more rows",
        )
    return rest, [item for item in train if item.example.id in chosen]


def _split_by_content(rows: _Split, data: DataSection) -> tuple[list[_Split], list[Diagnostic]]:
    split = data.split or DEFAULT_SPLIT
    counts = _counts(split, len(rows), data)
    left = _dealt(rows, data.stratify)
    parts: list[_Split] = []
    for name in NAMES:
        part, left = _take(left, counts[name])
        parts.append(part)
    _refuse_empty({name: len(part) for name, part in zip(NAMES, parts, strict=True) if name in split}, rows, data)
    notes = []
    if "dev" not in split:
        parts[0], parts[1] = _split_off_dev(parts[0], data)
        notes.append(_dev_note(len(parts[1]), data))
    if "test" not in split:
        notes.append(_test_note(data))
    if not are_counts(split) or left:
        sizes = ", ".join(f"{len(part)} {name}" for name, part in zip(NAMES, parts, strict=True))
        unused = f"; {len(left)} row{' stays' if len(left) == 1 else 's stay'} unused" if left else ""
        message = f"{len(rows)} rows split by content hash: {sizes}{unused}"
        notes.append(Diagnostic(code="BTC330", message=message, span=data.span, severity="note"))
    return parts, notes


def _dealt(rows: _Split, stratify: str | None) -> _Split:
    """Rows by content hash. With `stratify`, those of each value of that label are spread evenly over the whole, so
    that any cut has the values in proportion; exact copies stay side by side.
    """
    ordered = sorted(rows, key=lambda item: item.example.id)
    if stratify is None:
        return ordered
    distinct: dict[str, dict[str, None]] = {}
    for item in ordered:
        distinct.setdefault(canonical_json(item.example.labels[stratify]), {})[item.example.id] = None
    place = {
        example: (number + 0.5) / len(examples)
        for examples in distinct.values()
        for number, example in enumerate(examples)
    }
    return sorted(ordered, key=lambda item: (place[item.example.id], item.example.id))


def _counts(split: Mapping[str, float], rows: int, data: DataSection) -> dict[str, int]:
    """Rows of each split. Counts are exact; proportions are rounded at their cumulated ends."""
    given = {name: split.get(name, 0) for name in NAMES}
    if are_counts(split):
        counts = {name: round(share) for name, share in given.items()}
        if sum(counts.values()) > rows:
            message = f"`split` asks for {sum(counts.values())} rows, the data has {rows}"
            raise DataError.of("BTC320", message, span=data.span, help="ask for fewer, or write proportions")
    else:
        if sum(given.values()) > 1 + 1e-9:
            message = f"the proportions of `split` add up to {sum(given.values()):g}"
            raise DataError.of("BTC320", message, span=data.span, help="they may add up to 1 at most")
        ends = [round(sum(list(given.values())[: place + 1]) * rows) for place in range(len(NAMES))]
        counts = {name: end - start for name, start, end in zip(NAMES, [0, *ends], ends, strict=False)}
    return counts


def _refuse_empty(sizes: Mapping[str, int], rows: _Split, data: DataSection) -> None:
    for name, size in sizes.items():
        if size == 0:
            distinct = len({item.example.id for item in rows})
            message = f"`split` leaves no rows for `{name}` ({distinct} different rows in all)"
            raise DataError.of("BTC324", message, span=data.span, help="give it a share, or give more rows")


def _take(rows: _Split, count: int) -> tuple[_Split, _Split]:
    """The first `count` of sorted rows and the rest; exact copies stay together, so that a group that does not fit
    into what is left is passed over. Fewer than `count` only where groups leave no other way.
    """
    taken: _Split = []
    rest: _Split = []
    place = 0
    while place < len(rows):
        end = place
        while end < len(rows) and rows[end].example.id == rows[place].example.id:
            end += 1
        (taken if len(taken) + end - place <= count else rest).extend(rows[place:end])
        place = end
    return taken, rest


def _copies_note(name: str, part: _Split) -> Diagnostic | None:
    first: dict[str, Located] = {}
    copies = [item for item in part if first.setdefault(item.example.id, item) is not item]
    if not copies:
        return None
    item = copies[0]
    original = first[item.example.id]
    rows = "1 row is an exact copy" if len(copies) == 1 else f"{len(copies)} rows are exact copies"
    return Diagnostic(
        code="BTC333",
        message=f"in `{name}` {rows} of others",
        span=item.table.span(item.row),
        severity="note",
        notes=(f"the same inputs and labels stand in {original.table.name}:{original.row.line}",),
    )


def _numbered(part: _Split) -> tuple[Example, ...]:
    """The examples with copies numbered."""
    seen: dict[str, int] = {}
    examples = []
    for item in part:
        example = item.example
        seen[example.id] = seen.get(example.id, 0) + 1
        copy = seen[example.id]
        if copy > 1:
            example = replace(example, id=make_example(example.inputs, example.labels, copy=copy).id)
        examples.append(example)
    return tuple(examples)
