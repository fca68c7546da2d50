"""A web server for the files of a folder, which can break its lines."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Ranged(SimpleHTTPRequestHandler):
    """Python's file server, with parts of files, and lines that break."""

    asked: list[tuple[str, str | None]]
    breaks: int
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def do_GET(self) -> None:
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        path = Path(self.translate_path(self.path))
        type(self).asked.append((path.name, self.headers.get("Range")))
        if span is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first, last = int(span[1]), min(int(span[2]), len(content) - 1)
        self.send_response(206)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if type(self).breaks and path.suffix != ".json":
            type(self).breaks -= 1
            self.wfile.write(content[first : first + 1000])
            self.close_connection = True
        else:
            self.wfile.write(content[first : last + 1])


@contextlib.contextmanager
def serving(folder: Path, handler: type[SimpleHTTPRequestHandler]) -> Iterator[str]:
    """The URL of the folder, while the block runs."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
