"""A server of OpenAI's protocol on this machine, which fails in whatever way a test wants."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "sk-of-this-test-only"
MODEL_AS_SERVED = "served-model-0613"


@dataclass
class FakeServer:
    """What the server is to do, and what it was asked."""

    url: str = ""
    plan: list[str] = field(default_factory=list)
    """What is done with the next requests: ok, 429, 500, 400, slow, cut, empty, or a text to say.
    Where it is empty, `otherwise`."""
    otherwise: str = "Good. Rating: [[7]]"
    requests: list[dict[str, Any]] = field(default_factory=list)
    has_models: bool = True
    lock: Any = field(default_factory=threading.Lock)


class _Handler(BaseHTTPRequestHandler):
    @property
    def told(self) -> FakeServer:
        return self.server.told  # type: ignore[attr-defined]

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if not self._is_known():
            return self._send(401, {"error": {"message": f"wrong key {self._key()}"}})
        if not self.told.has_models:
            return self._send(404, {"error": {"message": "no list"}})
        return self._send(200, {"object": "list", "data": []})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self._is_known():
            return self._send(401, {"error": {"message": f"wrong key {self._key()}"}})
        with self.told.lock:
            self.told.requests.append(asked)
            what = self.told.plan.pop(0) if self.told.plan else self.told.otherwise
        if what in ("429", "500", "400"):
            return self._send(int(what), {"error": {"message": "later"}}, retry="0.01")
        if what == "slow":
            time.sleep(1.5)
        if what == "cut":
            return self._cut()
        return self._send(200, self._reply(asked, what))

    def _reply(self, asked: dict[str, Any], text: str) -> dict[str, Any]:
        text = {"empty": "", "slow": self.told.otherwise}.get(text, text)
        if "messages" in asked:
            choices = [{"index": 0, "message": {"role": "assistant", "content": text}}]
        else:
            texts = [f"<{asked['prompt'][-20:]}>{i}### more" for i in range(asked["n"])]
            choices = [{"index": i, "text": text} for i, text in enumerate(texts)]
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        for choice in choices:
            choice["finish_reason"] = "stop"
        return {"id": "x", "object": "x", "created": 0, "model": MODEL_AS_SERVED} | {
            "choices": choices,
            "usage": usage,
        }

    def _key(self) -> str:
        return str(self.headers["Authorization"]).removeprefix("Bearer ")

    def _is_known(self) -> bool:
        return self._key() == KEY

    def _cut(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b'{"id": "x", "cho')
        self.close_connection = True

    def _send(self, status: int, content: Any, *, retry: str | None = None) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if retry is not None:
            self.send_header("retry-after-ms", "1")
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def fake_server() -> Iterator[FakeServer]:
    """Serve until the block ends."""
    told = FakeServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.told = told  # type: ignore[attr-defined]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    told.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
