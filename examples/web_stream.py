"""Stream a continuation into a browser with the standard library's HTTP server.

    python examples/web_stream.py [PORT]        then open http://127.0.0.1:PORT/?prompt=Once+upon

Each chunk of text is sent as soon as its token is generated. A reader who leaves ends the request:
the generator is closed, and no further token is computed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlparse

from minigpt import GPTModel, GPTTokenizer

tokenizer = GPTTokenizer.from_pretrained()
model = GPTModel.from_pretrained()


class Handler(BaseHTTPRequestHandler):
    """Answers GET /?prompt=TEXT with plain text, chunk by chunk."""

    def do_GET(self) -> None:
        prompt = parse_qs(urlparse(self.path).query).get("prompt", ["Once upon a time"])[0]
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        try:
            for chunk in continuation(prompt):
                self.wfile.write(chunk.encode())
        except ConnectionError:
            pass  # the reader has left


def continuation(prompt: str) -> Iterator[str]:
    """Yield the prompt, then the text of each new token."""
    yield prompt
    decoder = tokenizer.stream_decoder()  # holds back half a character until it is complete
    ids = tokenizer.encode(prompt)
    for token_id in model.stream(ids, max_new_tokens=100, temperature=0.8, top_p=0.9):
        yield decoder.push(token_id)
    yield decoder.flush()


if __name__ == "__main__":
    try:
        port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"python examples/web_stream.py [PORT]: {error}")
    print(f"http://127.0.0.1:{server.server_port}/?prompt=Once+upon+a+time", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()
