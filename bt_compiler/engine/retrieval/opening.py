"""What a retriever is opened with, and the check that it is the one that somebody counts on. Knows no kind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bt_compiler.engine.progress import Progress
from bt_compiler.engine.retrieval.retriever import Retriever
from bt_compiler.errors import BundleError
from bt_compiler.spec.sections import RetrieverSection


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """One retriever that is to be opened."""

    section: RetrieverSection
    parts: tuple[Retriever, ...] = ()
    """The retrievers of `of`, open."""
    cache_root: Path
    progress: Progress
    carried: Path | None = None
    """Folder of its index that a bundle brought: the corpus is not looked at."""
    expected: str | None = None
    """The digest that it has to have; None: any."""

    def refuse_another(self, digest: str) -> None:
        """Raises BundleError BTC563 where `digest` is not the one that is expected."""
        if self.expected is None or digest == self.expected:
            return
        section = self.section
        what = "its corpus, its settings or the packages that index it are others"
        if section.corpus is None:
            what = "what it is made of, its settings, its model or its server are others"
        raise BundleError.of(
            "BTC563",
            f"retriever `{section.name}` has digest {digest[:12]}, the bundle's has {self.expected[:12]}: {what}",
            help=mend(section),
        )


def mend(section: RetrieverSection) -> str:
    """What to do about a corpus that is gone or another."""
    if section.corpus is None:
        return "use the settings and packages that the bundle was compiled with, or compile again"
    return (
        "compile again with documents that were added or changed; else put the file back, or give its place with "
        f"`--set retrievers.{section.name}.corpus.path=…`; a bundle compiled with `--with-index` needs no corpus"
    )
