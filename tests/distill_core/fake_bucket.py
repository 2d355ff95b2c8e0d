"""An object store for `gs://` paths, in memory: what epath and TensorStore both see as the cloud.

epath keeps its own code for object stores (its fsspec backend) over `FakeBucket` instead of gcsfs;
TensorStore keeps its real Google Cloud Storage driver, which speaks HTTP to `serve`. Both share the
same objects. Not covered: gcsfs itself, credentials, retries, eventual faults of the network.
"""

import contextlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fsspec.implementations.memory import MemoryFile, MemoryFileSystem


class FakeBucket(MemoryFileSystem):
    """As in Google's store there are no folders but only names that begin alike."""

    protocol = "gs"

    def __init__(self):
        super().__init__(global_store=False, skip_instance_cache=True)

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).removeprefix("gs:").strip("/")

    def mkdir(self, path, create_parents=True, **kwargs):
        pass

    def makedirs(self, path, exist_ok=False):
        pass

    def _open(self, path, mode="rb", **kwargs):
        if "a" in mode:
            raise NotImplementedError("an object store cannot append")
        return super()._open(path, mode=mode, **kwargs)

    @contextlib.contextmanager
    def serve(self) -> Iterator[str]:
        """The objects over HTTP, as TensorStore's driver asks for them; yields the address."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


def _handler(bucket: FakeBucket):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format, *args):
            pass

        def answer(self, code: int, body: bytes = b"{}"):
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("x-goog-generation", "1")
            self.end_headers()
            self.wfile.write(body)

        def parse(self):
            """(prefix of the bucket's keys, key or "", query)."""
            url = urllib.parse.urlsplit(self.path)
            name, _, rest = url.path.partition("/b/")[2].partition("/o")
            key = urllib.parse.unquote(rest.removeprefix("/"))
            query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query).items()}
            return f"/{name}/", key, query

        def do_GET(self):
            prefix, key, query = self.parse()
            if key:
                if prefix + key not in bucket.store:
                    return self.answer(404)
                return self.answer(200, bucket.store[prefix + key].getvalue())
            keys = sorted(k.removeprefix(prefix) for k in bucket.store if k.startswith(prefix))
            first, last = query.get("startOffset", ""), query.get("endOffset", "\U0010ffff")
            items = [{"name": k, "size": "1", "generation": "1"} for k in keys if first <= k < last]
            self.answer(200, json.dumps({"items": items}).encode())

        def do_POST(self):
            prefix, _, query = self.parse()
            body = self.rfile.read(int(self.headers["Content-Length"]))
            path = prefix + query["name"]
            bucket.store[path] = MemoryFile(bucket, path, body)
            found = {"name": query["name"], "generation": "1", "size": str(len(body))}
            self.answer(200, json.dumps(found).encode())

        def do_DELETE(self):
            prefix, key, _ = self.parse()
            self.answer(204 if bucket.store.pop(prefix + key, None) else 404, b"")

    return Handler
