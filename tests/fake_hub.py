"""A server on 127.0.0.1 that plays the download of torchvision's weights, or the Hugging Face hub: right or wrong.

    .venv/bin/python tests/fake_hub.py CASE make demo

runs a command whose Python processes take the server for torchvision's, with an empty cache for the weights.
CASE is right, wrong-hash, missing, cut or slow; the command's exit code is returned.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import torch
import torchvision

CASES = ("right", "wrong-hash", "missing", "cut", "slow")

# Makes every Python process that imports torchvision take the weights of every network from one address.
_SITE = """
import sys
from importlib.machinery import PathFinder

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision.models._api":
            return None
        spec = PathFinder.find_spec(name, path)
        run = spec.loader.exec_module
        def exec_module(module):
            run(module)
            module.WeightsEnum.url = property(lambda self: {url!r})
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Finder())
"""


def published_layout(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return a state dict as torchvision's files have it: no counters of batch norms, DenseNet's names with dots."""
    return OrderedDict(
        (re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name), value)
        for name, value in state.items()
        if not name.endswith("num_batches_tracked")
    )


def published_file(state: Mapping[str, torch.Tensor], arch: str) -> tuple[str, bytes]:
    """Return name and content of a file of weights; the name has the beginning of the hash, as torchvision's have."""
    buffer = io.BytesIO()
    torch.save(published_layout(state), buffer)
    data = buffer.getvalue()
    return f"{arch}-{hashlib.sha256(data).hexdigest()[:8]}.pth", data


class _Quiet(BaseHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def _running(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run a server and yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@contextlib.contextmanager
def serve(case: str, data: bytes) -> Iterator[str]:
    """Serve ``data`` at every path as one of `CASES` and yield the address."""
    ended = threading.Event()

    class Handler(_Quiet):
        def do_HEAD(self) -> None:
            if case == "missing":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            if case == "missing":
                return
            with contextlib.suppress(OSError):  # the client gave up
                if case == "right":
                    self.wfile.write(data)
                elif case == "wrong-hash":
                    self.wfile.write(data[:-1] + bytes([data[-1] ^ 1]))
                elif case == "cut":
                    self.wfile.write(data[: len(data) // 2])
                else:
                    for start in range(0, len(data), 100):
                        self.wfile.write(data[start : start + 100])
                        if ended.wait(0.1):
                            break

    with _running(Handler) as address:
        try:
            yield address
        finally:
            ended.set()


@contextlib.contextmanager
def serve_dataset(revisions: Mapping[str, Mapping[str, bytes]]) -> Iterator[str]:
    """Serve the files of each revision of a data set as the hub does and yield the address."""
    commits = {revision: f"{number:040}" for number, revision in enumerate(revisions)}
    files = {
        f"/resolve/{commits[revision]}/{name}": data
        for revision, part in revisions.items()
        for name, data in part.items()
    }
    for revision, commit in commits.items():
        listed = [
            {"type": "file", "path": name, "size": len(data), "oid": commit}
            for name, data in revisions[revision].items()
        ]
        info = {"id": "owner/name", "sha": commit, "siblings": [{"rfilename": entry["path"]} for entry in listed]}
        files[f"/revision/{quote(revision, safe='')}"] = json.dumps(info).encode()
        files[f"/tree/{commit}?recursive=true&expand=false"] = json.dumps(listed).encode()

    class Handler(_Quiet):
        def do_HEAD(self) -> bytes:
            path = self.path.removeprefix("/api").removeprefix("/datasets/owner/name")
            if path not in files:
                self.send_error(404)
                return b""
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[path])))
            self.send_header("ETag", f'"{hashlib.sha256(files[path]).hexdigest()}"')
            self.send_header("X-Repo-Commit", path.split("/")[2] if "resolve" in path else "0" * 40)
            self.end_headers()
            return files[path]

        def do_GET(self) -> None:
            self.wfile.write(self.do_HEAD())

    with _running(Handler) as address:
        yield address


@dataclass
class FileServer:
    """Files by path, which change and break as a test wants, and the requests for them.

    Attributes:
        address: The address.
        files: Content by path.
        limit: Bytes of a response after which the connection breaks.
        requests: Path and Range of each request.
    """

    address: str
    files: dict[str, bytes]
    limit: int = sys.maxsize
    requests: list[tuple[str, str]] = field(default_factory=list)


@contextlib.contextmanager
def serve_files(files: Mapping[str, bytes]) -> Iterator[FileServer]:
    """Serve files with their ETags, and parts of them."""
    state = FileServer("", dict(files))

    class Handler(_Quiet):
        def do_GET(self) -> None:
            part = self.headers.get("Range", "")
            state.requests.append((self.path, part))
            if self.path not in state.files:
                self.send_error(404)
                return
            data = state.files[self.path]
            etag = f'"{hashlib.sha256(data).hexdigest()}"'
            start = int(part[len("bytes=") : -1]) if part and self.headers.get("If-Range") == etag else 0
            if start and start >= len(data):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", etag)
            self.end_headers()
            self.wfile.write(data[start : start + state.limit])

    with _running(Handler) as state.address:
        yield state


def main(case: str, *command: str) -> int:
    """Run a command beside the server."""
    name, data = published_file(torchvision.models.resnet18(weights=None).state_dict(), "resnet18")
    with serve(case, data) as address, tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(_SITE.format(url=f"{address}/{name}"))
        path = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "TORCH_HOME": folder, "NO_PROXY": "127.0.0.1"}
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    if len(sys.argv) < 3 or sys.argv[1] not in CASES:
        sys.exit(f"usage: fake_hub.py {{{','.join(CASES)}}} COMMAND …")
    sys.exit(main(*sys.argv[1:]))
