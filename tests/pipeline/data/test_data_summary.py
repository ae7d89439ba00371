"""What `kdedge data` prints and writes, and the line with which `run-all` begins."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_folders import make_tree
from PIL import Image
from tiny import TINY
from typer.testing import CliRunner, Result

from kdedge.errors import InputError
from kdedge.pipeline import run as stages
from kdedge.pipeline.cli import app
from kdedge.pipeline.data import inspection, summary
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset
from kdedge.pipeline.data.summary import short_summary, summarise
from kdedge.pipeline.data.summary_text import _balance, findings, print_summary, write_page


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tmp_path = make_tree(tmp_path / "images", {"[ant]": 10, "bee": 20})
    (tmp_path / "bee" / "0.heic").write_bytes(b"")
    shutil.copy(tmp_path / "bee" / "000.png", tmp_path / "[ant]" / "copy.png")
    return tmp_path


def scene(seed: int, mode: str = "RGB", size: tuple[int, int] = (40, 32)) -> Image.Image:
    """Return a picture of large patches: it survives JPEG."""
    patches = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    return Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """Class folders with train and test; every picture differs."""
    root, seed = tmp_path / "photos", 0
    for part, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                scene(seed := seed + 1).save(root / part / name / f"{index:02}.png")
    return root


def data(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["data", "--data", f"folder:{root}", "--image-size", "16", *arguments])


def facts_of(root: Path) -> dict[str, Any]:
    return summarise(DataConfig(source=f"folder:{root}", image_size=16))[0]


def test_json_line(tree: Path) -> None:
    done = data(tree)
    assert done.exit_code == 0
    facts = json.loads(done.stdout)
    assert (facts["train"], facts["val"], facts["test"]) == (22, 3, 6)
    assert facts["per_class"][1] == {"class": "bee", "train": 14, "val": 2, "test": 4, "left_out": 1}
    assert facts["smallest_class"] == {"class": "[ant]", "train": 8}
    assert facts["imbalance"] == 1.75
    assert facts["left_out"] == {".heic": 1}
    assert facts["source_sizes"] == {key: [20, 30] for key in ("smallest", "median", "largest")}
    assert facts["modes"] == {"RGB": 31}
    assert facts["duplicates"]["in_two_classes"] == 2
    assert facts["near_duplicates"]["in_two_classes"] == 0  # blank images are like each other
    assert facts["gate"] == {
        "limit_pp": 0.5, "least_test_images": 765, "likely_changed_pct": 1, "likely_test_images": 3468,
        "too_few_groups": False,
    }  # fmt: skip
    shown = " ".join(done.stderr.split())
    assert "images have copies in another class" in shown
    assert "1 file is not used: bee: 1 .heic (for HEIC: pip install pillow-heif)" in shown


def test_table(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_summary(facts_of(tree))
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["class", "training", "validation", "test", "left", "out"]
    assert ["[ant]", "8", "1", "2", "0"] in lines
    assert ["bee", "14", "2", "4", "1"] in lines
    assert ["all", "22", "3", "6", "1"] in lines
    text = " ".join(out.split())
    assert "20 x 30 to 20 x 30 pixels, median 20 x 30; resized to 16 x 16 pixels (squeeze)" in text
    assert "images with a copy in another class: 2" in text
    assert "6 test images; a limit of 0.5 pp needs at least 765" in text


def test_table_of_many_classes(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"class": str(number), "train": number, "val": 1, "test": 1, "left_out": 0} for number in range(100)]
    print_summary(facts_of(tree) | {"per_class": rows, "train": 4950})
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 50
    assert "20 of 100 classes" in out
    assert "4,950" in out


def test_a_reencoded_copy_in_the_test_set_is_a_near_copy(split: Path) -> None:
    scene(1).resize((20, 16)).save(split / "test" / "dog" / "again.jpg", quality=70)  # train/cat/00.png
    shutil.copy(split / "train" / "dog" / "03.png", split / "test" / "dog" / "same.png")
    facts = facts_of(split)
    assert {kind: facts["duplicates"][kind] for kind in ("test_copies", "in_training", "in_two_classes")} == {
        "test_copies": 1, "in_training": 0, "in_two_classes": 0,
    }  # fmt: skip
    assert facts["duplicates"]["test_copies_examples"] == [["test/dog/same.png", "train/dog/03.png"]]
    assert facts["near_duplicates"]["test_copies_examples"] == [["test/dog/again.jpg", "train/cat/00.png"]]
    assert facts["near_duplicates"]["in_two_classes"] == 2
    assert facts["near_duplicates"]["compared"] == 33


@pytest.mark.parametrize(("classes", "judged"), [(10, False), (1, True)])
def test_near_copies_are_not_judged_where_classes_look_alike(classes: int, judged: bool) -> None:
    rng = np.random.default_rng(0)
    drawing = np.where(rng.random((16, 18, 1)) < 0.3, 255, 0) * np.ones(3)
    thumbnails = np.clip(drawing + rng.normal(0, 5, (60, 16, 18, 3)), 0, 255).astype(np.uint8)
    names, labels = [f"{index}.png" for index in range(60)], np.arange(60) % classes
    exact, near = inspection._copies([name.encode() for name in names], list(thumbnails), labels, labels < 0, names)
    assert (near["judged"], near["in_two_classes"]) == (judged, 0)
    assert near["in_training"] == (59 if judged else 0)
    assert exact["in_training"] == 0


def test_unreadable_files_are_listed_by_reason(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [
        {"file": name, "reason": reason} for name, reason in (("a.png", "cut"), ("b.png", "odd"), ("c.png", "cut"))
    ]
    print_summary(facts_of(tree) | {"unreadable": files})
    out = capsys.readouterr().out
    assert out.endswith("cannot be read: cut\n  a.png\n  c.png\ncannot be read: odd\n  b.png\n")


def test_every_unreadable_file_is_listed_next_to_the_rest(split: Path, tmp_path: Path) -> None:
    good = (split / "train" / "cat" / "00.png").read_bytes()
    for number in range(12):
        (split / "train" / "cat" / f"cut{number:02}.png").write_bytes(good[: len(good) // 2])
    (split / "test" / "dog" / "text.jpg").write_text("no image")
    done = data(split, "--out", str(tmp_path / "page"))
    assert done.exit_code == 2
    assert "13 images cannot be read" in done.stderr
    facts = json.loads(done.stdout)
    assert [Path(item["file"]).name for item in facts["unreadable"]] == [
        *(f"cut{number:02}.png" for number in range(12)), "text.jpg",
    ]  # fmt: skip
    assert (facts["train"] + facts["val"], facts["test"]) == (24, 8)
    page = (tmp_path / "page" / "data.html").read_text()
    assert page.count("cut") == 12


@pytest.mark.parametrize("left", [0, 1])
def test_unreadable_files_that_leave_too_few_are_named(left: int, split: Path) -> None:
    for path in sorted((split / "train" / "cat").iterdir())[left:]:
        path.write_bytes(b"")
    with pytest.raises(InputError, match=rf"cat.*\({12 - left} images in all\)"):
        facts_of(split)


def test_unreadable_files_that_leave_a_class_for_validation_only_are_named(split: Path) -> None:
    shutil.copytree(split / "test", split / "val")
    for path in (split / "train" / "cat").iterdir():
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"cat.*\(12 images in all\)"):
        facts_of(split)


def test_test_images_only_cannot_be_trained_on(split: Path) -> None:
    shutil.rmtree(split / "train")
    done = data(split)
    assert done.exit_code == 2
    assert "has no train folder" in " ".join(done.stderr.split())


def test_a_large_set_is_sampled(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        scene(100 + number).save(split / "train" / "dog" / f"more{number}.png")
    monkeypatch.setattr(inspection, "_MOST_COMPARED", 30)
    facts = facts_of(split)
    assert (facts["near_duplicates"]["different"], facts["near_duplicates"]["compared"]) == (52, 30)
    assert "among 30 of 52 different images" in dict(findings(facts))["near copies"]
    few = inspection.sample(open_dataset(DataConfig(source=f"folder:{split}", image_size=16)), most=16)
    assert np.bincount(few.labels).tolist() == [6, 9]
    assert few.images.shape == (15, 16, 16, 3)


@pytest.mark.parametrize(
    ("mode", "texts"),
    [
        ("RGB", ("all in color", "whitening start (images have color)", "28 RGB; 4 with transparency")),
        ("L", ("all grey", "random start (grey images)", "28 L; 4 with transparency")),
    ],
)
def test_grey_and_transparent_files(split: Path, mode: str, texts: tuple[str, ...]) -> None:
    for seed, path in enumerate(sorted(split.glob("*/*/*.png"))):
        image = scene(seed, mode)
        if path.parts[-3:-1] == ("test", "cat"):
            image.putalpha(200)
        image.save(path)
    shown = "\n".join(text for _, text in findings(facts_of(split)))
    assert texts[0] in shown
    assert texts[1] in shown
    assert re.search(r"\d+ [A-Z]+, \d+ [A-Z]+; 4 with transparency", shown)


def test_a_constant_channel_is_named(split: Path) -> None:
    for path in split.glob("*/*/*.png"):
        pixels = np.asarray(Image.open(path)).copy()
        pixels[..., 2] = 7
        Image.fromarray(pixels).save(path)
    facts = facts_of(split)
    assert facts["pixels"]["constant_channels"] == ["blue"]
    assert "blue almost constant" in dict(findings(facts))["pixels"]


def test_images_without_bright_pixels_get_advice(split: Path) -> None:
    """As files of 16 bits with values of 12 bits, of which only the high byte is used."""
    for path in split.glob("*/*/*.png"):
        Image.fromarray(np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16).save(path)
    advice = "no value above 15 of 255: scale the files to the range of their format"
    assert advice in dict(findings(facts_of(split)))["pixels"]
    assert advice in short_summary(DataConfig(source=f"folder:{split}", image_size=16))


def test_files_with_several_frames_are_counted(split: Path) -> None:
    scene(1).save(split / "train" / "cat" / "a.tif", save_all=True, append_images=[scene(2)])
    scene(3).save(split / "train" / "dog" / "b.gif", save_all=True, append_images=[scene(4)])
    scene(5).save(split / "train" / "dog" / "c.tif")
    facts = facts_of(split)
    assert facts["several_frames"] == 2
    assert dict(findings(facts))["file modes"].endswith("2 with several frames, of which the first is used")


def test_files_of_which_none_can_be_read_are_named(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for index in range(5):
            Image.fromarray(np.full((16, 16), index, np.float32)).save(tmp_path / name / f"{index}.tif")
    done = data(tmp_path)
    assert done.exit_code == 2
    assert "floating-point pixels have no known range" in " ".join(done.stderr.split())


@pytest.mark.parametrize(("groups", "enough"), [(40, True), (12, False)])
def test_groups_are_counted_and_too_few_of_them_named(groups: int, enough: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (80, 16, 16, 3), np.uint8), np.arange(80) % 2
    np.savez(tmp_path / "my.npz", x=images, y=labels, group=np.arange(80) % groups)
    facts = summarise(DataConfig(source=str(tmp_path / "my.npz"), image_size=16))[0]
    assert sum(facts["groups"].values()) == groups
    shown = dict(findings(facts))
    assert shown["groups"].endswith(f"{facts['groups']['test']} test groups")
    needed = f"; 5 test groups of equal size are needed, and there are {facts['groups']['test']}"
    assert shown["gate"].endswith(needed) is not enough
    assert "those of one group are not" in shown["gate"]


def test_without_pytorch_the_defaults_are_unknown(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "find_spec", lambda _: None)
    assert dict(findings(facts_of(tree)))["defaults"] == "unknown: PyTorch is not installed"


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.images.append(dict(attrs))
        elif tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_one_file_with_a_sheet_for_every_class(tree: Path, tmp_path: Path) -> None:
    (tree / "bee").rename(tree / "<b>bee")
    facts, images = summarise(DataConfig(source=f"folder:{tree}", image_size=16))
    path = write_page(facts, images, tmp_path / "new" / "page")
    text = path.read_text()
    page = _Page(text)
    assert page.open == []
    assert [image["alt"] for image in page.images] == ["images of <b>bee", "images of [ant]"]
    assert all((image["src"] or "").startswith("data:image/webp;base64,") for image in page.images)
    assert not re.search(r"https?://|<script|<link", text)
    assert "<b>" not in text


def test_a_page_inside_the_images_is_refused(tree: Path) -> None:
    done = data(tree, "--out", str(tree / "page"))
    assert done.exit_code == 2
    assert "is inside the data folder" in " ".join(done.stderr.split())


def test_the_short_summary_is_one_line(tree: Path) -> None:
    assert short_summary(DataConfig(source=f"folder:{tree}", image_size=16)) == (
        "folder:images: 2 classes, 25 training and 6 test images, smallest class [ant] with 9, color, "
        "0 test images are copies of training images, 20 x 30 pixels in the median, resized to 16 x 16"
    )
    assert short_summary(DataConfig(source="sample")) == (
        "sample: 10 classes, 4,000 training and 1,000 test images, smallest class airplane with 400, color"
    )


def test_images_that_lose_more_than_half_of_their_side_bring_advice(split: Path) -> None:
    advice = "median, resized to 16 x 16: a larger --image-size keeps more detail"
    assert short_summary(DataConfig(source=f"folder:{split}", image_size=16)).endswith(advice)
    assert dict(findings(facts_of(split)))["image sizes"].endswith("(squeeze): a larger --image-size keeps more detail")


def test_run_all_tells_of_the_data_before_anything_is_measured(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "run_stage", interrupt)
    done = CliRunner().invoke(app, ["run-all", "--data", f"folder:{tree}", "--out", str(tmp_path / "run"), *TINY])
    shown = " ".join(done.stderr.split())
    assert "2 images have copies in another class" in shown
    assert "folder:images: 2 classes, 25 training and 6 test images" in shown
    assert done.exit_code == 130


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_very_unequal_classes_get_advice() -> None:
    few = {"smallest_class": {"class": "rare", "train": 5}, "largest_class": {"class": "common", "train": 40}}
    assert _balance({**few, "imbalance": 8.0}).endswith("has 40 (8 times as many)")
    one = {"class": "a", "train": 1}
    assert _balance({"smallest_class": one, "largest_class": one}) == "all classes have 1 training image"
    assert _balance({**few, "imbalance": 10.0}).endswith("try --balance sampler and --metric balanced")
    one = {**few, "smallest_class": {"class": "rare", "train": 1}, "imbalance": 40.0}
    assert _balance(one).startswith("rare with 1 training image; ")
