"""The browser example in headless Chromium: the golden logits, the pixels that `kdedge predict` sees, and the page."""

import itertools
import json
import queue
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, DESKTOP, PHONE, browsing, framed
from PIL import Image

from kdedge.export.bundle.predict import predict
from kdedge.images import read_image
from kdedge.preprocessing import RESIZE_MODES

ROOT = Path(__file__).resolve().parents[2]
WEB, BUNDLE = ROOT / "examples" / "web", ROOT / "artifacts" / "reference" / "bundle"
pytestmark = [
    pytest.mark.browser,
    pytest.mark.npm,
    pytest.mark.skipif(CHROMIUM is None or shutil.which("npm") is None, reason="needs headless Chromium and npm"),
]

LOGITS = """<!doctype html><script type="module">
import { decode, openBundle, resize, run } from "./web/classify.js";
const bytes = async (url) => (await fetch(url)).blob();
try {
  const bundle = await openBundle("./bundle/");
  const golden = new Uint8Array(await (await bytes("golden.bin")).arrayBuffer());
  const one = golden.slice(0, 3 * bundle.size ** 2);
  const pixels = {};
  for (const name of await (await fetch("pictures.json")).json())
    for (const mode of ["squeeze", "crop", "pad", "crop-0.875", "crop-0.8-bicubic"])
      pixels[`${name} ${mode}`] = Array.from(resize(await decode(await bytes(name)), bundle.size, mode));
  const [all, first] = [await run(bundle, golden), await run(bundle, one)].map((logits) => Array.from(logits));
  bundle.resizeMode ??= "none";
  const cropping = (await openBundle("./cropping/")).resizeMode;
  await post({ labels: bundle.labels, modes: [bundle.resizeMode, cropping], all, first, pixels });
} catch (error) { await post({ error: String(error) }); }
function post(value) { return fetch("result", { method: "POST", body: JSON.stringify(value) }); }
</script>"""

LABELS = """<!doctype html><script type="module">
import { openBundle } from "./web/classify.js";
const { labels } = await openBundle("./FOLDER/");
fetch("result", { method: "POST", body: JSON.stringify({ labels }) });
</script>"""

RACE = """<script type="module">
const files = [];
for (const name of ["slow.png", "quick.png"]) files.push(new File([await (await fetch(`/${name}`)).blob()], name));
const [answer, status] = ["answer", "status"].map((id) => document.getElementById(id));
while (!status.textContent.startsWith("Ready")) await new Promise((done) => setTimeout(done, 20));
for (const file of files) {
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(file);
  dispatchEvent(new DragEvent("drop", { dataTransfer }));
}
await new Promise((done) => setTimeout(done, 3000));
const rows = [...answer.children].map((row) => [row.children[0].textContent, row.children[2].textContent]);
fetch("/result", { method: "POST", body: JSON.stringify({ rows }) });
</script></body>"""

# Reports what the page shows once it has answered or failed.
PROBE = """<script>setInterval(() => {
  const [answer, status] = ["answer", "status"].map((id) => document.getElementById(id));
  if (!answer.children.length && !status.classList.contains("bad")) return;
  const rows = [...answer.children].map((row) => [row.children[0].textContent, row.children[2].textContent]);
  const color = getComputedStyle(document.body).backgroundColor;
  const widths = [document.documentElement.scrollWidth, innerWidth];
  fetch("/result", { method: "POST", body: JSON.stringify({ rows, status: status.textContent, color, widths }) });
}, 50)</script></body>"""


class Site:
    """A folder served on this machine, and what its pages post."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.posted = folder, queue.Queue[Any]()
        site = self

        class Handler(SimpleHTTPRequestHandler):
            def do_POST(self) -> None:
                site.posted.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def show(self, page: str, profile: Path, *, dark: bool = False) -> Any:
        """Show a page and return the first thing that it posts."""
        while not self.posted.empty():
            self.posted.get()
        with browsing(f"{self.url}/{page}", profile, dark=dark):
            return self.posted.get(timeout=90)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "web").mkdir()
    for name in ("index.html", "classify.js", "package.json", ".npmrc"):
        shutil.copy(WEB / name, folder / "web")
    install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run(install, cwd=folder / "web", check=True, capture_output=True)
    page = folder / "web" / "index.html"
    page.write_text(page.read_text().replace("</body>", PROBE))
    shutil.copytree(BUNDLE, folder / "bundle")
    site = Site(folder)
    yield site
    site.server.shutdown()


def pictures(folder: Path) -> list[str]:
    """Write lossless images that are larger, smaller, as large, and of other modes; return their names."""
    rng = np.random.default_rng(5)
    made = {
        "large.png": rng.integers(0, 256, (211, 307, 3)),
        "same.png": rng.integers(0, 256, (32, 32, 3)),
        "small.png": rng.integers(0, 256, (9, 20, 3)),
        "grey.png": rng.integers(0, 256, (40, 50)),
        "tall.png": rng.integers(0, 256, (50, 40, 3)),
        "holes.png": np.dstack([rng.integers(0, 256, (50, 64, 3)), 255 * rng.integers(0, 2, (50, 64))]),
    }
    for name, pixels in made.items():
        Image.fromarray(pixels.astype(np.uint8)).save(folder / name)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.open(folder / "large.png").save(folder / "turned.png", exif=turned)
    return [*made, "turned.png"]


def test_the_browser_computes_the_golden_logits_from_the_same_pixels(site: Site, tmp_path: Path) -> None:
    inputs, golden = (np.load(BUNDLE / f"golden_{name}.npy") for name in ("inputs", "int8_logits"))
    (site.folder / "golden.bin").write_bytes(inputs.tobytes())
    names = pictures(site.folder)
    (site.folder / "pictures.json").write_text(json.dumps(names))
    shutil.copytree(BUNDLE, site.folder / "cropping")
    settings = json.loads((BUNDLE / "preprocessing.json").read_text())
    (site.folder / "cropping" / "preprocessing.json").write_text(json.dumps(settings | {"resize_mode": "crop"}))
    (site.folder / "logits.html").write_text(LOGITS)
    found = site.show("logits.html", tmp_path / "profile")
    assert "error" not in found
    assert found["labels"] == (BUNDLE / "labels.txt").read_text().splitlines()
    assert found["modes"] == ["none", "crop"]
    for name, mode in itertools.product(names, RESIZE_MODES):
        expected = read_image(site.folder / name, inputs.shape[1], mode).ravel().astype(int)
        # Pillow 13 resizes some tall images in the other order, which rounds otherwise.
        allowed = 1 if name in ("tall.png", "turned.png") else 0
        assert np.abs(np.array(found["pixels"][f"{name} {mode}"]) - expected).max() <= allowed, (name, mode)
    logits = np.array(found["all"], np.float32).reshape(golden.shape)
    # To the bit: a sum of integers has no order, and WebAssembly fixes the rounding of the floats that scale it.
    assert np.array_equal(logits, golden)
    assert np.array_equal(np.array(found["first"], np.float32), logits[0])


@pytest.mark.parametrize(("width", "dark"), [(PHONE, True), (DESKTOP, False)])
def test_the_page_shows_the_answer_of_kdedge_predict(site: Site, tmp_path: Path, width: int, dark: bool) -> None:
    image = site.folder / "photo.png"
    Image.fromarray(np.load(BUNDLE / "golden_inputs.npy")[0]).resize((300, 200)).save(image)
    (row,) = predict(BUNDLE, [image], top_k=5)
    (site.folder / "framed.html").write_text(framed("web/index.html?bundle=/bundle/&image=/photo.png", width))
    found = site.show("framed.html", tmp_path / "profile", dark=dark)
    assert "Nothing left this machine" in found["status"]
    assert found["rows"][0] == [row["label"], f"{100 * row['probability']:.2f} %"]
    assert [label for label, _ in found["rows"]] == [answer["label"] for answer in row["top"]]
    assert found["widths"][0] <= found["widths"][1] == width
    assert found["color"] == ("rgb(13, 17, 23)" if dark else "rgb(245, 246, 248)")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("bundle=/nowhere/", "cannot be opened: /nowhere/"),
        ("bundle=/bundle/&image=/bundle/labels.txt", "did not work"),
        ("bundle=/bundle/&image=/nowhere.png", "did not work: /nowhere.png: 404"),
        ("bundle=/bundle/&image=http://127.0.0.1:1/photo.png", "did not work"),
    ],
)
def test_the_page_says_what_went_wrong(site: Site, tmp_path: Path, query: str, message: str) -> None:
    found = site.show(f"web/index.html?{query}", tmp_path / "profile")
    assert message in found["status"]
    assert found["rows"] == []


def test_a_slow_answer_does_not_replace_that_to_a_later_question(site: Site, tmp_path: Path) -> None:
    """Drops two images at once, of which the first takes longer; reports what is shown when the first is long done."""
    golden = np.load(BUNDLE / "golden_inputs.npy")
    answers = [row["label"] for row in predict(BUNDLE, [BUNDLE / "golden_inputs.npy"])]
    other = next(number for number, label in enumerate(answers) if label != answers[0])
    Image.fromarray(golden[0]).resize((3000, 2000)).save(site.folder / "slow.png")
    Image.fromarray(golden[other]).save(site.folder / "quick.png")
    (row,) = predict(BUNDLE, [site.folder / "quick.png"])
    page = (WEB / "index.html").read_text()
    (site.folder / "web" / "race.html").write_text(page.replace("</body>", RACE))
    found = site.show("web/race.html?bundle=/bundle/", tmp_path / "profile")
    assert found["rows"][0] == [row["label"], f"{100 * row['probability']:.2f} %"]


def test_labels_may_end_in_any_kind_of_newline(site: Site, tmp_path: Path) -> None:
    labels = (BUNDLE / "labels.txt").read_text().splitlines()
    for number, (end, last) in enumerate((("\n", ""), ("\n", "\n"), ("\r\n", "\r\n"), ("\n", " \n\n"))):
        folder = site.folder / f"bundle-{number}"
        shutil.copytree(BUNDLE, folder)
        (folder / "labels.txt").write_bytes((end.join(labels) + last).encode())
        text = LABELS.replace("FOLDER", folder.name)
        (site.folder / "labels.html").write_text(text)
        expected = [*labels[:-1], labels[-1] + last.partition("\n")[0].strip("\r")]
        assert site.show("labels.html", tmp_path / f"profile-{number}") == {"labels": expected}
