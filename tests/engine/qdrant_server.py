"""Qdrant's own local mode (`qdrant-client`) behind HTTP, as a process: `python qdrant_server.py < points.json`.

Requests are read by the client's models of Qdrant's REST interface, which refuse what the interface does not have;
filters, named vectors and scores are Qdrant's. Prints the port when it is ready.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from pydantic import ValidationError
from qdrant_client import QdrantClient
from qdrant_client.http.models import Distance, PointStruct, QueryRequestBatch, VectorParams

COLLECTION, VECTOR, KEY = "wiki", "dense", "secret"


def filled(points: list[dict[str, Any]]) -> QdrantClient:
    client = QdrantClient(":memory:")
    size = len(points[0]["vector"])
    client.create_collection(COLLECTION, vectors_config={VECTOR: VectorParams(size=size, distance=Distance.COSINE)})
    client.upsert(
        COLLECTION,
        [PointStruct(id=n, vector={VECTOR: one["vector"]}, payload=one["payload"]) for n, one in enumerate(points)],
    )
    return client


class Handler(BaseHTTPRequestHandler):
    client: QdrantClient

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        _, collections, collection, *rest = self.path.split("/")
        if self.headers.get("api-key") != KEY:
            self.answer(401, {"status": {"error": "Must provide an API key or an Authorization bearer token"}})
        elif (collections, rest) != ("collections", ["points", "query", "batch"]):
            self.answer(404, {"status": {"error": "not found"}})
        elif not self.client.collection_exists(collection):
            self.answer(404, {"status": {"error": f"Not found: Collection `{collection}` doesn't exist!"}})
        else:
            self.query(collection, body)

    def query(self, collection: str, body: bytes) -> None:
        try:
            asked = QueryRequestBatch.model_validate_json(body)
            found = self.client.query_batch_points(collection, requests=asked.searches)
        except (ValidationError, ValueError) as error:
            self.answer(400, {"status": {"error": f"Format error in JSON body: {error}"}})
            return
        result = [one.model_dump(mode="json", exclude_none=True) for one in found]
        self.answer(200, {"result": result, "status": "ok", "time": 0.001})

    def answer(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        return


def main() -> None:
    Handler.client = filled(json.load(sys.stdin))
    server = HTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
