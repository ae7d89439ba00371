"""Images that do not fit into memory are refused before the first is decoded."""

import subprocess
import sys
from pathlib import Path

import pytest
from image_folders import make_tree, open_folder

from kdedge import image_memory as memory
from kdedge.errors import InputError
from kdedge.pipeline.data import items
from kdedge.pipeline.data.options import DataConfig
from kdedge.pipeline.data.sources import open_dataset, training_images


def test_too_many_images_are_refused_with_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = open_folder(make_tree(tmp_path, {"a": 20, "b": 20}))
    needed = 32 * 16 * 16 * 3
    monkeypatch.setattr(memory, "available_bytes", lambda: needed - 1)
    assert len(dataset.test()) == 8
    with monkeypatch.context() as patch:
        patch.setattr(items, "convert_image", lambda *_: pytest.fail("decoded an image"))
        with pytest.raises(InputError, match=r"32 images of 16 x 16 pixels need 0\.0 GB of memory; .*avail") as caught:
            dataset.train()
    assert "--image-size" in caught.value.hint
    assert "--train-size" in caught.value.hint
    monkeypatch.setattr(memory, "available_bytes", lambda: needed)
    assert len(dataset.train()) == 32


def test_train_size_of_a_known_set_needs_memory_for_what_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 450 * 48 * 48 * 3)
    with pytest.raises(InputError, match=r"4,000 images of 48 x 48 pixels need 0\.0 GB of memory"):
        open_dataset(DataConfig(source="sample", image_size=48)).train()
    config = DataConfig(source="sample", image_size=48, train_size=50)
    used = training_images(open_dataset(config), config)
    assert [part.images.shape for part in used] == [(50, 48, 48, 3), (400, 48, 48, 3)]


def test_the_least_of_all_limits_counts(tmp_path: Path) -> None:
    """Control groups of both versions, with a group above that is tighter and one that this container cannot see."""
    own, root = tmp_path / "cgroup", tmp_path / "root"

    def group(path: str, **files: object) -> None:
        (root / path).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (root / path / name.replace("__", ".")).write_text(f"{content}\n")

    own.write_text("0::/job/step\n")
    group("job/step", memory__max="max", memory__current=70, memory__stat="anon 1\ninactive_file 20")
    group("job", memory__max=100, memory__current=80, memory__stat="anon 1\ninactive_file 20")
    assert list(memory._left_in_cgroups(own, root)) == [40]
    own.write_text("4:cpu,cpuacct:/x\n3:memory:/hidden/step\n1:name=systemd:/\n")
    group("memory", memory__stat="total_inactive_file 5",
          **{"memory__limit_in_bytes": 1000, "memory__usage_in_bytes": 900})  # fmt: skip
    assert list(memory._left_in_cgroups(own, root)) == [105]
    assert list(memory._left_in_cgroups(tmp_path / "none", root)) == []


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce it")
def test_an_address_space_limit_counts() -> None:
    code = (
        "import resource; from kdedge.image_memory import available_bytes;"
        "resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30)); print(available_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) < 4 << 30
