"""As much of W&B's server as ``wandb`` needs to start, resume and end runs: what it got is kept."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Server:
    """What the server got: for each run id, its history, and what it was said to be."""

    url: str = ""
    key: str = "k" * 40
    histories: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    upserts: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    streams: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Every message of the file stream, which says how a run ended."""

    def steps(self, run: str) -> list[int]:
        """The steps of a run's history, in the order in which they came."""
        return [row["_step"] for row in self.histories.get(run, [])]

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data that answers a GraphQL query."""
        run = str(variables.get("name"))
        if "createRunFiles" in query:
            files = [{"name": n, "uploadUrl": f"{self.url}/up/{n}"} for n in variables["files"]]
            return {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": files}}
        if "upsertBucket" in query:
            self.upserts.setdefault(run, []).append(variables)
            return {"upsertBucket": {"bucket": self._bucket(run), "inserted": True}}
        if "RunResumeStatus" in query:
            known = {"id": "p", "name": "p", "entity": {"id": "e", "name": "us"}}
            return {
                "model": known | {"bucket": self._resumed(run)} if run in self.upserts else None
            }
        if "viewer" in query:
            empty: dict[str, Any] = {"edges": []}
            who = {"id": "u", "entity": "us", "username": "us", "flags": "{}"}
            return {"viewer": who | {"teams": empty, "apiKeys": empty}}
        return {}

    def _bucket(self, run: str) -> dict[str, Any]:
        project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "us"}}
        shown = {"displayName": run, "description": None, "config": "{}", "sweepName": None}
        lines = len(self.histories.get(run, []))
        return {"id": "b", "name": run, "project": project, "historyLineCount": lines} | shown

    def _resumed(self, run: str) -> dict[str, Any]:
        last = [json.dumps(row) for row in self.histories.get(run, [])[-1:]]
        tails = {"historyTail": json.dumps(last), "eventsTail": "[]", "logLineCount": 0}
        known = {"summaryMetrics": "{}", "eventsLineCount": 0, "tags": [], "wandbConfig": '{"t":1}'}
        return self._bucket(run) | tails | known

    def take(self, run: str, message: dict[str, Any]) -> None:
        """Keep a message of the file stream."""
        self.streams.setdefault(run, []).append(message)
        history = (message.get("files") or {}).get("wandb-history.jsonl")
        if history is not None:
            rows = self.histories.setdefault(run, [])
            assert history["offset"] == len(rows)
            rows += map(json.loads, history["content"])


class Handler(BaseHTTPRequestHandler):
    """Answers for the ``Server`` that its class has."""

    protocol_version = "HTTP/1.1"
    server_state: Server

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        found: dict[str, Any] = {}
        if self.path.endswith("/file_stream"):
            self.server_state.take(self.path.split("/")[-2], json.loads(body))
        elif self.path == "/graphql":
            message = json.loads(body)
            data = self.server_state.answer(message["query"], message.get("variables") or {})
            found = {"data": data}
        text = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_PUT = do_GET = do_POST  # uploads of files, which nobody looks at


class QuietServer(ThreadingHTTPServer):
    """Does not print that a client closed its connection."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """wandb-core closes its connections as it likes."""


@contextmanager
def wandb_server() -> Iterator[Server]:
    """A server on the loopback address, until the end of the block."""
    state = Server()
    with QuietServer(("127.0.0.1", 0), type("Bound", (Handler,), {"server_state": state})) as http:
        state.url = f"http://127.0.0.1:{http.server_port}"
        threading.Thread(target=http.serve_forever, daemon=True).start()
        yield state
        http.shutdown()
