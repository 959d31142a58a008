"""The bundle folder: written whole or not at all, read only after every hash has been checked.

    manifest.json            all facts and the hashes of the other files; written last
    program.json             the typed graph
    prompts.json             the candidate (instructions and demos by module) and a prompt of each module as sent
    formats/<name>.jinja     the prompt formats, the judges' too, so that nothing but the bundle and models is needed
    adapters/<name>/         PEFT layout
    indexes/<digest>/        retrieval indexes, where the compile was asked to put them in
    spec.yaml                the resolved spec
    report.html, report.json

Nothing in a bundle is executed here, and nothing outside the folder is read.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bt_compiler.artifact.adapter_folder import CONFIG, WEIGHTS, adapter_digest
from bt_compiler.artifact.contents import BundleContents
from bt_compiler.artifact.digest import bundle_digest, identity_of, portable_candidate, portable_model
from bt_compiler.artifact.format_files import format_files, judge_formats, portable, resolved
from bt_compiler.artifact.manifest import INDEXES, FileEntry, Manifest, damaged
from bt_compiler.artifact.page import report_html
from bt_compiler.artifact.report import report_json, scores_of, shipped_rows
from bt_compiler.artifact.swap import put, put_copy, replaced_folder
from bt_compiler.canonical import digest_file
from bt_compiler.engine.request import Message, PromptText
from bt_compiler.errors import BundleError
from bt_compiler.graph.candidate import Adapter, Candidate
from bt_compiler.graph.program import Program
from bt_compiler.graph.serial import program_from_json, program_to_json
from bt_compiler.graph.serial_candidate import candidate_from_json, candidate_to_json

MANIFEST = "manifest.json"
PROMPTS_SCHEMA = 1
_PACKAGE = "bt-compiler"
_PAIR = re.compile(r"\[\n *([^\[\]{}\n]*),\n *([^\[\]{}\n]*)\n *\]")
"""Two plain values of an indented list. No string of JSON text holds a newline."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Bundle:
    """A verified bundle."""

    folder: Path
    manifest: Manifest
    program: Program
    """`Module.format` is the path of the format file in the bundle."""
    candidate: Candidate
    sent: Mapping[str, PromptText]
    """Module -> a prompt exactly as sent during the compile."""
    judge_formats: Mapping[str, str]
    """Module that the metric calls -> path of its format file in the bundle."""

    def __repr__(self) -> str:
        return f"<Bundle {self.manifest.name} {self.manifest.digest[:12]} in {str(self.folder)!r}>"

    @property
    def indexes(self) -> dict[str, Path]:
        """Retriever -> folder of its index, of those that the bundle carries."""
        named, carried = self.manifest.identity.get("retrievers", {}), self.manifest.indexes
        return {name: self.folder / INDEXES / digest for name, digest in named.items() if digest in carried}

    @property
    def spec(self) -> Path:
        """The resolved spec, for `load_spec`."""
        return self.folder / "spec.yaml"


def write_bundle(folder: Path, contents: BundleContents) -> Manifest:
    """Writes the bundle to `folder`; an older bundle there is intact until the new one is whole and on disk.

    Raises BundleError: BTC560 where `folder` is something else than a bundle, BTC559 where it cannot be written
    (no space, read-only), BTC561 for an adapter that is none.
    """
    folder = folder.absolute()
    refuse_foreign(folder)
    adapters = {adapter.name: adapter for adapter in contents.candidate.adapters.values()}
    texts, manifest = _documents(contents, adapters)
    try:
        with replaced_folder(folder) as part:
            for name, data in texts.items():
                put(part / name, data)
            for name, adapter in adapters.items():
                for file in (CONFIG, WEIGHTS):
                    put_copy(part / "adapters" / name / file, adapter.path / file)
            for digest, index in contents.indexes.items():
                for path in sorted(index.iterdir()):
                    put_copy(part / INDEXES / digest / path.name, path)
            manifest = replace(manifest, files=_entries(part))
            put(part / MANIFEST, _pretty(manifest.to_json()))
    except OSError as error:
        raise BundleError.of(
            "BTC559",
            f"the bundle `{folder}` cannot be written: {error.strerror or error}",
            help="make room or choose another folder with `-o`, then run the same command again: it resumes",
            notes=("an older bundle at that place is as it was",) if folder.exists() else (),
        ) from error
    return manifest


def verify_bundle(folder: Path) -> Manifest:
    """Checks every file, every hash and the bundle digest. Raises BundleError (BTC550 to BTC557, BTC561)."""
    return read_bundle(folder).manifest


def read_bundle(folder: Path) -> Bundle:
    """The bundle, after every file has been hashed and the digest computed again.

    Raises BundleError: BTC550 no bundle, BTC551 damaged manifest, BTC552 another version's, BTC553 changed file, BTC554
    missing file, BTC555 extra file, BTC556 a path or link that leaves the folder, BTC557 the digest does not fit.
    """
    folder = folder.absolute()
    manifest = _read_manifest(folder)
    texts = _checked_files(folder, manifest)
    try:
        program_document, prompts_document = json.loads(texts["program.json"]), json.loads(texts["prompts.json"])
        candidate = candidate_from_json(prompts_document["candidate"], folder / "adapters")
        program = resolved(program_from_json(program_document), folder)
        sent = {name: _prompt_text(prompt) for name, prompt in prompts_document["sent"].items()}
        judges = judge_formats(manifest.identity.get("judges", {}), folder)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        why = f"program or prompts cannot be read: {error}"
        raise of_another_version(folder, manifest, why) or damaged(folder, why) from error
    adapters = {adapter.name: adapter_digest(adapter.path) for adapter in candidate.adapters.values()}
    found = bundle_digest(
        program=program_document,
        prompts=prompts_document,
        formats={path: text.decode() for path, text in texts.items() if path.startswith("formats/")},
        adapters=adapters,
        identity=manifest.identity,
    )
    if found != manifest.digest or adapters != manifest.adapters:
        raise BundleError.of(
            "BTC557",
            f"the digest of bundle `{folder}` is {found[:12]}, its manifest says {manifest.digest[:12]}",
            help="the bundle was put together from parts of different ones: compile again or copy it again",
        )
    return Bundle(
        folder=folder, manifest=manifest, program=program, candidate=candidate, sent=sent, judge_formats=judges
    )


def of_another_version(folder: Path, manifest: Manifest, why: str) -> BundleError | None:
    """The error (BTC552) for a bundle that cannot be read, `why` says what of it, where another `btc` wrote it; None:
    this one did.
    """
    written = manifest.identity.get("versions", {}).get(_PACKAGE)
    try:
        own = version(_PACKAGE)
    except PackageNotFoundError:  # run from its source
        return None
    if written in (None, own):
        return None
    return BundleError.of(
        "BTC552",
        f"bundle `{folder}` was written by btc {written}, and this is {own}, which cannot read it",
        help=f"use that version (`pip install {_PACKAGE}=={written}`), or compile again with this one",
        notes=(why,),
    )


def check_adapter(folder: Path, adapter: Adapter) -> None:
    """Raises BundleError (BTC553) where an adapter of the bundle in `folder` is no longer what was verified."""
    why: tuple[str, ...] = ()
    try:
        same = adapter_digest(adapter.path) == adapter.sha256
    except BundleError as error:  # gone, for one
        same, why = False, (error.diagnostics[0].message,)
    if not same:
        raise BundleError.of(
            "BTC553",
            f"adapter `{adapter.name}` of bundle `{folder}` has changed since the bundle was loaded",
            help="load the bundle anew, or start the server again: something else was put in its place",
            notes=why,
        )


def _documents(contents: BundleContents, adapters: Mapping[str, Adapter]) -> tuple[dict[str, bytes], Manifest]:
    """Every text file of the bundle but the manifest, and the manifest without its list of files."""
    formats = format_files(contents.formats)
    program = program_to_json(portable(contents.program, formats))
    prompts = {
        "schema_version": PROMPTS_SCHEMA,
        "candidate": candidate_to_json(portable_candidate(contents.candidate)),
        "sent": {module: asdict(prompt) for module, prompt in contents.sent.items()},
    }
    texts_of_formats = {formats[name]: text for name, text in contents.formats.items()}
    shas = {name: adapter_digest(adapter.path) for name, adapter in adapters.items()}
    identity = _plain(identity_of(contents))
    found = bundle_digest(program=program, prompts=prompts, formats=texts_of_formats, adapters=shas, identity=identity)
    manifest = Manifest(
        name=contents.program.name,
        digest=found,
        identity=identity,
        adapters=shas,
        models={name: replace(model, id=portable_model(model.id)) for name, model in contents.models.items()},
        strategy=contents.strategy,
        lineage=contents.lineage,
        rows=shipped_rows(contents),
        scores=scores_of(contents),
        created=contents.created,
        seconds=contents.seconds,
        fixed_parts=contents.fixed_parts,
        environment=contents.environment,
        files={},
    )
    texts = {
        "program.json": _pretty(program),
        "prompts.json": _pretty(prompts),
        "spec.yaml": contents.spec_yaml.encode(),
        "report.json": _pretty(report_json(contents, digest=found)),
        "report.html": report_html(contents, digest=found).encode(),
        **{path: text.encode() for path, text in texts_of_formats.items()},
    }
    return texts, manifest


def _plain(value: Any) -> Any:
    """The value as a reader of the file sees it."""
    return json.loads(json.dumps(value, allow_nan=False))


def _pretty(document: Any) -> bytes:
    """Indented JSON, with pairs (example, score) on one line."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    return (_PAIR.sub(r"[\1, \2]", text) + "\n").encode()


def _prompt_text(data: Mapping[str, Any]) -> PromptText:
    messages = tuple(Message(role=one["role"], content=one["content"]) for one in data["messages"])
    return PromptText(messages=messages, text=data["text"], shared=data["shared"])


def refuse_foreign(folder: Path) -> None:
    """A folder with other things in it is never replaced. Raises BundleError (BTC560)."""
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir() or (not (folder / MANIFEST).is_file() and any(folder.iterdir())):
        raise BundleError.of(
            "BTC560",
            f"`{folder}` exists and is not a bundle",
            help="empty it or move it away, and the same command goes on from what it has done; or choose an empty or "
            "new folder with `-o`, which starts anew",
        )


def _entries(part: Path) -> dict[str, FileEntry]:
    return {
        path: FileEntry(sha256=digest_file(part / path), size=(part / path).stat().st_size) for path in _listing(part)
    }


def _listing(folder: Path) -> list[str]:
    """Every file under `folder` by relative path, sorted. Raises BundleError (BTC556) for links and special files."""
    found = []
    for root, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(root) / name
            mode = path.lstat().st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise _leaves(folder, path.relative_to(folder).as_posix(), "is a link or no plain file")
            if stat.S_ISREG(mode):
                found.append(path.relative_to(folder).as_posix())
    return sorted(found)


def _leaves(folder: Path, path: str, why: str) -> BundleError:
    return BundleError.of(
        "BTC556", f"`{path}` of bundle `{folder}` {why}", help="a bundle holds plain files inside its own folder only"
    )


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        there = path.is_file()
    except OSError as error:  # a name that the system refuses
        raise BundleError.of(
            "BTC550", f"`{folder}` cannot be read: {error.strerror}", help="give another folder"
        ) from error
    if not there:
        what = (
            "has no `manifest.json`" if folder.is_dir() else "is not a folder" if folder.exists() else "does not exist"
        )
        raise BundleError.of(
            "BTC550", f"`{folder}` {what}", help="give the folder that `btc compile` wrote, such as `artifacts/NAME`"
        )
    if path.is_symlink():
        raise _leaves(folder, MANIFEST, "is a link or no plain file")
    try:
        data = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"it is not JSON ({error})") from error
    except OSError as error:
        raise damaged(path, error.strerror or str(error)) from error
    return Manifest.from_json(data, path=path)


def _checked_files(folder: Path, manifest: Manifest) -> dict[str, bytes]:
    """The text files, from the very bytes that were hashed; adapters and indexes are hashed on disk."""
    for path in manifest.files:
        if Path(path).is_absolute() or ".." in Path(path).parts or "\\" in path:
            raise _leaves(folder, path, "leaves the folder")
    listed, there = set(manifest.files) | {MANIFEST}, set(_listing(folder))
    mend = "copy the bundle again, or compile again"
    if missing := sorted(listed - there):
        raise BundleError.of("BTC554", f"bundle `{folder}` lacks `{missing[0]}`", help=mend, notes=_also(missing[1:]))
    if extra := sorted(there - listed):
        raise BundleError.of(
            "BTC555",
            f"bundle `{folder}` holds `{extra[0]}`, which is not in its manifest",
            help="move it out of the bundle",
            notes=_also(extra[1:]),
        )
    texts: dict[str, bytes] = {}
    for path, entry in manifest.files.items():
        file = folder / path
        if file.stat().st_size != entry.size or digest_file(file) != entry.sha256:
            raise BundleError.of("BTC553", f"`{path}` of bundle `{folder}` has changed since it was written", help=mend)
        if not path.startswith(("adapters/", f"{INDEXES}/")):
            texts[path] = file.read_bytes()
    return texts


def _also(paths: list[str]) -> tuple[str, ...]:
    return (f"and {len(paths)} more: " + ", ".join(f"`{path}`" for path in paths[:5]),) if paths else ()
