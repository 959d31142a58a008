"""The `qdrant` retriever against a process that answers by Qdrant's own local mode."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_encoders import WORDS, write_encoders

from bt_compiler.engine.progress import Silent
from bt_compiler.engine.retrieval import Retriever, open_retriever
from bt_compiler.errors import BackendError
from bt_compiler.spec.sections import RetrieverSection

pytest.importorskip("qdrant_client", reason="needs the package `qdrant-client`")
pytest.importorskip("sentence_transformers", reason="needs the extra `dense`")
pytestmark = pytest.mark.filterwarnings("ignore")  # the libraries' own
ROWS = [
    {"name": f"p{n}", "body": f"{WORDS[n % 13]} {WORDS[n * 5 % 13]} {WORDS[n // 3]}", "year": 1900 + n}
    for n in range(30)
]
QUERIES = ["red tower", "old church", "red tower", "river"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_encoders(folder)
    return folder


@pytest.fixture(scope="module")
def vectors(models: Path) -> Any:
    """Of the rows, then of the queries."""
    from sentence_transformers import SentenceTransformer

    texts = [row["body"] for row in ROWS] + QUERIES
    return SentenceTransformer(str(models / "encoder")).encode(texts, batch_size=1, normalize_embeddings=True)


@pytest.fixture(scope="module")
def endpoint(vectors: Any) -> Iterator[str]:
    points = [{"vector": vector.tolist(), "payload": row} for vector, row in zip(vectors, ROWS, strict=False)]
    command = [sys.executable, str(Path(__file__).with_name("qdrant_server.py"))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(points))
        process.stdin.close()
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.terminate()


@pytest.fixture
def opened(endpoint: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("WIKI_KEY", "secret")

    def made(**changes: Any) -> Retriever:
        options = {
            "endpoint": endpoint,
            "collection": "wiki",
            "vector": "dense",
            "model": str(models / "encoder"),
            "api_key": {"env": "WIKI_KEY"},
            "id": "name",
            "title": "name",
            "text": "{name}: {body}",
            **changes,
        }
        section = RetrieverSection(name="wiki", kind="qdrant", options=options)
        return open_retriever(section, cache_root=tmp_path, progress=Silent())

    return made


def nearest(vectors: Any, query: int, k: int, rows: list[int] | None = None) -> list[tuple[str, float]]:
    among = list(range(len(ROWS))) if rows is None else rows
    scores = vectors[: len(ROWS)] @ vectors[len(ROWS) + query]
    best = sorted(among, key=lambda row: -scores[row])[:k]
    return [(ROWS[row]["name"], float(scores[row])) for row in best]  # type: ignore[misc]


def agree(found: list[dict[str, Any]], expected: list[tuple[str, float]]) -> None:
    np.testing.assert_allclose(
        [passage["score"] for passage in found], [score for _, score in expected], rtol=0, atol=1e-5
    )
    assert {passage["id"] for passage in found} == {name for name, _ in expected}


def test_the_nearest_passages_come_best_first(opened: Any, vectors: Any) -> None:
    found = opened().search(QUERIES, 4)
    for query in range(len(QUERIES)):
        agree(found[query], nearest(vectors, query, 4))
    row = next(row for row in ROWS if row["name"] == found[0][0]["id"])
    assert found[0][0]["text"] == f"{row['name']}: {row['body']}"
    assert found[0] == found[2]


def test_a_filter_is_the_servers_own(opened: Any, vectors: Any) -> None:
    late = {"must": [{"key": "year", "range": {"gte": 1920}}], "must_not": [{"key": "name", "match": {"value": "p25"}}]}
    rows = [n for n in range(20, 30) if n != 25]
    for query, found in enumerate(opened(filter=late).search(QUERIES, 5)):
        agree(found, nearest(vectors, query, 5, rows))
    with pytest.raises(BackendError) as caught:
        opened(filter={"must": [{"key": "yaer", "range": {"gte": 1920}}]})
    assert caught.value.diagnostics[0].code == "BTC389"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"collection": "wikipedia"}, "answers status 404"),
        ({"vector": "sparse"}, "answers status 400"),
        ({"filter": {"must": [{"wrong": "form"}]}}, "answers status 400"),
        ({"title": "headline"}, "without the field `headline`; its fields: `body`, `name`, `year`"),
        ({"api_key": {"env": "PATH"}}, "answers status 401"),
    ],
)
def test_what_the_server_refuses_is_said_when_it_is_opened(opened: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(BackendError) as caught:
        opened(**changes)
    (item,) = caught.value.diagnostics
    assert item.code == "BTC382"
    assert words in item.message
