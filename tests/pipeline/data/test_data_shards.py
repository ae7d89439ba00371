"""WebDataset shards: members, labels, patterns, parts, and every mistake with its shard and member."""

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from command_line import invoke
from fake_hub import FileServer, serve_files
from image_folders import open_folder
from PIL import Image

from kdedge.errors import InputError, StageError
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset
from kdedge.pipeline.data.user_images import UserImages
from kdedge.pipeline.stages.registry import STAGES

NAMES = ("apple", "pear")


def png(number: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (18, 20), (100, 50, number)).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, members: Mapping[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def members(numbers: range, kind: str = "cls") -> dict[str, bytes]:
    """Images and their classes: even numbers are apples."""
    made = {}
    for number in numbers:
        label = {
            "cls": f"{number % 2}\n",
            "txt": NAMES[number % 2],
            "json": json.dumps({"label": number % 2, "x": [1]}),
        }
        made[f"./a.b/{number:04}.PNG" if number == 1 else f"{number:04}.png"] = png(number)
        made[f"./a.b/{number:04}.{kind}" if number == 1 else f"{number:04}.{kind}"] = label[kind].encode()
    return made


def opened(path: "Path | str", **options: object) -> UserImages:
    dataset = open_dataset(DataConfig(source=f"shards:{path}", image_size=16, **options))  # type: ignore[arg-type]
    assert isinstance(dataset, UserImages)
    return dataset


def blues(dataset: UserImages) -> list[list[int]]:
    return [split.images[:, 0, 0, 2].tolist() for split in (dataset.train(), dataset.test())]


@pytest.mark.parametrize("kind", ["cls", "txt", "json", "text.json"])
def test_names_of_classes_may_be_numbers_of_others(tmp_path: Path, kind: str) -> None:
    made = {}
    for number in range(12):
        grade = str(number % 3 + 1)  # of "1", "2" and "3"
        label = {"cls": str(number % 3), "txt": grade, "json": json.dumps({"label": number % 3})}
        label["text.json"] = json.dumps({"label": grade})
        made |= {f"{number}.png": png(number), f"{number}.{kind.removeprefix('text.')}": label[kind].encode()}
    write(tmp_path / "0.tar", made)
    (tmp_path / "classes.txt").write_text("1\n2\n3\n")
    dataset = opened(tmp_path)
    assert dataset.class_names == ("1", "2", "3")
    parts = dataset.train(), dataset.test()
    assert all((part.images[:, 0, 0, 2] % 3 == part.labels).all() for part in parts)


@pytest.mark.parametrize("kind", ["cls", "txt", "json"])
def test_labels_are_numbers_or_names(tmp_path: Path, kind: str) -> None:
    for part, start in (("train", 0), ("test", 20)):
        for shard in range(2):
            first = start + 10 * shard
            write(tmp_path / part / f"{shard:03}.tar", members(range(first, first + 10), kind))
    (tmp_path / "classes.txt").write_text("apple\npear\nunused\n")
    dataset = opened(tmp_path)
    assert (dataset.name, dataset.class_names) == (f"shards:{tmp_path.name}", NAMES)
    assert blues(dataset) == [list(range(20)), list(range(20, 40))]
    assert dataset.train().labels.tolist() == [0, 1] * 10
    assert dataset.train_items[1].name == "train/000.tar/./a.b/0001.PNG"
    (tmp_path / "classes.txt").unlink()
    assert opened(tmp_path).class_names == (NAMES if kind == "txt" else ("0", "1"))


def test_shards_have_the_images_of_a_folder(tmp_path: Path) -> None:
    for number in range(20):
        file = tmp_path / "folder" / NAMES[number % 2] / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(number))
    write(tmp_path / "set" / "0.tar", members(range(20), "txt"))
    folder, shards = open_folder(tmp_path / "folder"), opened(tmp_path / "set" / "0.tar")
    assert shards.class_names == folder.class_names
    for one, other in ((folder.train(), shards.train()), (folder.test(), shards.test())):
        assert len(one) == len(other)
        assert np.array_equal(np.bincount(one.labels), np.bincount(other.labels))
    assert shards.train_sha256() == opened(tmp_path / "set").train_sha256()
    assert shards.test_counts() == [2, 2]


@pytest.mark.parametrize(
    ("pattern", "train", "test"),
    [
        ("train-{000..001}.tar", 20, 0),
        ("{train,test}-000.tar", 10, 10),
        ("{train-*,test-{000..000}}.tar", 20, 10),
        ("*.tar", 20, 10),
    ],
)
def test_patterns_name_shards(tmp_path: Path, pattern: str, train: int, test: int) -> None:
    for number, name in enumerate(("train-000", "train-001", "test-000")):
        write(tmp_path / f"{name}.tar", members(range(10 * number, 10 * number + 10)))
    dataset = opened(tmp_path / pattern)
    assert len(dataset.items) == train + test
    if test:
        assert (len(dataset.train_items), len(dataset.test_items)) == (train, test)


def test_the_name_of_a_folder_above_a_pattern_is_no_pattern(tmp_path: Path) -> None:
    folder = tmp_path / "set[1]-{a,b}"
    for number, name in enumerate(("train", "test")):
        write(folder / f"{name}-0.tar", members(range(10 * number, 10 * number + 10)))
    dataset = opened(folder / "{train,test}-*.tar")
    assert (len(dataset.train_items), len(dataset.test_items)) == (10, 10)
    # A folder that does not exist is a pattern.
    assert len(opened(tmp_path / "set[[]?]-*" / "*.tar").items) == 20


def test_images_with_a_second_dot_in_the_name_are_never_dropped_silently(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = {"0.5mm.png": png(90), "0.5mm.cls": b"1", "0002.mask.png": png(91)}
    dataset = opened(write(tmp_path / "all.tar", members(range(10)) | more))
    assert len(dataset.items) == 10
    assert dataset.left_out == {("", "with a second dot in the name"): 1}
    assert "1 file is not used: 1 with a second dot in the name" in " ".join(capsys.readouterr().err.split())


def test_groups_of_json_stay_together(tmp_path: Path) -> None:
    made = {}
    for number in range(40):
        made[f"{number}.png"] = png(number)
        made[f"{number}.json"] = json.dumps({"label": number % 2, "group": f"g{number // 4}"}).encode()
    dataset = opened(write(tmp_path / "0.tar", made))
    parts = [{item.group for item in items} for items in (dataset.train_items, dataset.val_items, dataset.test_items)]
    assert sum(map(len, parts)) == 10
    assert all(parts)


def test_a_group_that_is_null_is_none(tmp_path: Path) -> None:
    made = members(range(10), "json")
    made |= {name: b'{"label": 0, "group": null}' for name in made if name.endswith("0.json")}
    assert {item.group for item in opened(write(tmp_path / "0.tar", made)).items} == {""}


ONE = {"1.png": png(1), "1.cls": b"1"}
MISTAKES: dict[str, tuple[Mapping[str, bytes], str]] = {
    "no label": ({"a/7.png": png(1)}, r"a/7.png in .*0\.tar: it has no \.cls, \.json or \.txt"),
    "no image": ({"7.cls": b"1"}, r"7 in .*0\.tar: it has no image \(\.cls\)"),
    "two images": ({**ONE, "1.jpg": png(2)}, r"1 in .*0\.tar: it has 2 images"),
    "no key": ({"1.png": png(1), "1.json": b'{"text": "x"}'}, r"1\.json in .*: it has no key label"),
    "no object": ({"1.png": png(1), "1.json": b"[1]"}, r"1\.json in .*: it has no key label"),
    "damaged JSON": ({"1.png": png(1), "1.json": b"{"}, r"1\.json in .*0\.tar: "),
    "a list": ({"1.png": png(1), "1.json": b'{"label": [1]}'}, r"1\.json in .*: it has the class \[1\]"),
    "empty": ({"1.png": png(1), "1.cls": b" "}, r"1\.cls in .*: it has the class ''"),
    "no text": ({"1.png": png(1), "1.txt": b"\xff"}, r"1\.txt in .*0\.tar: "),
    "unknown number": ({"1.png": png(1), "1.cls": b"9"}, r"0\.tar/1\.png has the class 9, which classes\.txt has not"),
    "one class": (ONE, r"has 1 class \(pear\)"),
    "damaged image": ({**members(range(20)), "3.png": b"x", "3.cls": b"1"}, r"0\.tar/3\.png"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_name_shard_and_member(tmp_path: Path, mistake: str) -> None:
    (tmp_path / "classes.txt").write_text("apple\npear\n")
    made, message = MISTAKES[mistake]
    write(tmp_path / "0.tar", made)
    with pytest.raises(InputError, match=message) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.hint


def test_unusable_shards(tmp_path: Path) -> None:
    def refused(path: "Path | str", match: str) -> None:
        with pytest.raises(InputError, match=match):
            opened(path)

    for address in ("https://example.org/{0..9}.tar.gz", "http://example.org/*.tar", "http://a/../../b.tar"):
        refused(address, "is not the address of .tar files")
    refused(tmp_path / "none", "none does not exist")
    refused(tmp_path / "train-{1..0}.tar", "names no shard")
    whole = write(tmp_path / "set" / "train-0.tar", members(range(20)))
    refused(tmp_path / "set" / "train-{0..1}.tar", r"train-1\.tar does not exist")
    other = write(tmp_path / "set" / "more.tar", members(range(20, 40)))
    refused(tmp_path / "set", r"more\.tar has neither train, val nor test in its name")
    other.unlink()
    val = whole.rename(whole.with_name("val.tar"))
    refused(tmp_path / "set", "has only shards of val")
    data = val.read_bytes()
    for length, reason in ((len(data) // 2, "it is truncated"), (1700, "unexpected end of data"), (0, "")):
        whole.write_bytes(data[:length])
        refused(whole, rf"cannot read .*train-0\.tar: {reason}")
    packed = tmp_path / "packed" / "0.tar.gz"
    packed.parent.mkdir()
    packed.write_bytes(gzip.compress(data))
    refused(packed.parent, r"has no \.tar file, but 0\.tar\.gz: decompress it")
    refused(packed, r"cannot read .*0\.tar\.gz")
    twice = tmp_path / "twice.tar"
    with tarfile.open(twice, "w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.cls"))
    refused(twice, r"a\.cls in .*twice\.tar: the shard has it twice")
    (tmp_path / "classes.txt").write_text("a\na\n")
    refused(val.rename(tmp_path / "0.tar"), r"classes\.txt has an empty, repeated or invalid class")


def test_a_shard_that_changes_is_an_error(tmp_path: Path) -> None:
    shard = write(tmp_path / "0.tar", members(range(20)))
    dataset = opened(shard)
    write(shard, members(range(22)))
    with pytest.raises(InputError, match="the shard has changed"):
        dataset.train()


def test_the_command_line_takes_shards(tmp_path: Path) -> None:
    write(tmp_path / "0.tar", members(range(40)))
    result = invoke("data", "--data", f"shards:{tmp_path}", "--image-size", 16)
    assert result.exit_code == 0, result.output
    assert "shards:" in result.output


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("KDEDGE_CACHE", str(tmp_path / "cache"))
    files = {f"/set/{part}-{n}.tar": members(range(20 * n, 20 * n + 20)) for n, part in enumerate(["train", "test"])}
    for path, content in files.items():
        write(tmp_path / path[1:], content)
    (tmp_path / "set" / "classes.txt").write_text("apple\npear\n")
    with serve_files({f"/set/{file.name}": file.read_bytes() for file in (tmp_path / "set").iterdir()}) as state:
        yield state


def test_shards_of_an_address_are_those_of_the_folder_and_need_no_network_later(
    server: FileServer, tmp_path: Path
) -> None:
    address = f"{server.address}/set/{{train-0,test-1}}.tar"
    dataset, local = opened(address), opened(tmp_path / "set")
    assert dataset.name == "shards:{train-0,test-1}.tar"
    assert dataset.class_names == local.class_names == NAMES
    assert (dataset.train_sha256(), dataset.test_sha256()) == (local.train_sha256(), local.test_sha256())
    assert sorted(server.requests) == [(path, "") for path in sorted(server.files)]
    server.files.clear()
    assert opened(address).train_sha256() == dataset.train_sha256()
    assert len(server.requests) == 3


def test_an_interrupted_download_of_shards_resumes_only_the_same_content(server: FileServer, tmp_path: Path) -> None:
    address, path = f"{server.address}/set/train-0.tar", "/set/train-0.tar"

    def interrupted() -> None:
        server.limit = 5000
        with pytest.raises(StageError, match=r"the connection ended after 5,000 of [\d,]+ bytes") as caught:
            opened(address)
        assert "run the same command again to resume" in caught.value.hint
        server.limit = 1 << 30

    interrupted()
    whole = opened(address).train_sha256()
    assert server.requests[-1] == (path, "bytes=5000-")
    (copy,) = (tmp_path / "cache").rglob("*.tar")
    assert copy.read_bytes() == server.files[path]
    known = json.loads(copy.with_name(".train-0.tar.json").read_text())
    assert known["sha256"] == hashlib.sha256(copy.read_bytes()).hexdigest()
    assert {file.name for file in copy.parent.iterdir()} >= {"classes.txt", copy.name}
    assert not list(copy.parent.glob(".*.partial"))

    data = bytearray(copy.read_bytes())
    data[600] ^= 1
    copy.write_bytes(data)
    assert opened(address).train_sha256() == whole, "a damaged copy was not replaced"

    shutil.rmtree(copy.parent)
    interrupted()
    server.files[path] = write(tmp_path / "other.tar", members(range(30))).read_bytes()
    assert len(opened(address).items) == 30, "parts of two files were joined"

    copy.with_name(f".{copy.name}.partial").write_bytes(server.files[path])  # killed before it was renamed
    copy.with_name(f".{copy.name}.etag").write_text(json.loads(copy.with_name(".train-0.tar.json").read_text())["etag"])
    copy.unlink()
    assert len(opened(address).items) == 30


def test_shards_without_a_network_are_an_error_of_one_line(server: FileServer, tmp_path: Path) -> None:
    result = invoke("data", "--data", f"shards:{server.address}/set/none.tar")
    assert result.exit_code == 1
    assert f"cannot download {server.address}/set/none.tar to " in " ".join(result.stderr.split())
    assert "HTTP Error 404" in " ".join(result.stderr.split())
    result = invoke("data", "--data", "shards:http://127.0.0.1:9/{0..3}.tar")
    assert result.exit_code == 1
    assert "Connection refused" in " ".join(result.stderr.split())
    assert "give --data shards:FOLDER" in " ".join(result.stderr.split())


def test_a_page_in_place_of_a_shard_is_not_kept(server: FileServer, tmp_path: Path) -> None:
    address, path = f"{server.address}/set/train-0.tar", "/set/train-0.tar"
    shard = server.files[path]
    server.files[path] = b"<html>please log in</html>" * 100
    result = invoke("data", "--data", address)
    assert result.exit_code == 1
    assert "the server sent something other than a .tar file" in " ".join(result.stderr.split())
    server.files[path] = shard
    assert len(opened(address).items) == 20


def test_the_query_of_an_address_is_in_no_manifest() -> None:
    config = build_config({"data": {"source": "shards:https://host/set/0.tar?key=secret"}})
    assert STAGES["bundle"].fingerprint(config)["all data"]["source"] == "shards:https://host/set/0.tar"
    assert STAGES["quantize"].fingerprint(config)["data"]["source"] == "shards:0.tar"
