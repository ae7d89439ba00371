"""Data sets in the formats of Hugging Face, written here as its package ``datasets`` writes them."""

import io
import json

import numpy as np
import pytest
from command_line import invoke
from fake_hub import serve_dataset
from PIL import Image

from kdedge.errors import InputError, StageError
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.data import hugging_face
from kdedge.pipeline.data.sources import open_dataset

pa = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

NAMES = ["cat", "dog", "ant"]
FEATURES = {"picture": {"_type": "Image"}, "kind": {"names": NAMES, "_type": "ClassLabel"}}
CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def png(number, size=16):
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def table(count=9, first=0, *, features=FEATURES, labels=None, images="picture", label="kind", **columns):
    cells = [{"bytes": png(first + index), "path": None} for index in range(count)]
    labels = [index % 3 for index in range(count)] if labels is None else labels
    made = pa.table({images: pa.array(cells, CELL), label: labels, **columns})
    if not features:
        return made
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def save_to_disk(folder, splits):
    for name, made in splits.items():
        (folder / name).mkdir(parents=True)
        with pa.OSFile(str(folder / name / "data-0.arrow"), "wb") as file, pa.ipc.new_stream(file, made.schema) as out:
            out.write_table(made)
        (folder / name / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-0.arrow"}]}))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))
    return folder


def write_parquet(folder, files):
    for name, made in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(made, folder / name, row_group_size=4)
    return folder


def opened(path, **options):
    return open_dataset(build_config({"data": {"source": f"hf:{path}", "image_size": 16, **options}}).data)


def test_arrow_and_parquet_files_are_the_same_data_set(tmp_path):
    train, test = table(), table(6, first=50)
    saved = opened(save_to_disk(tmp_path / "saved", {"train": train, "test": test}))
    files = {"data/train-0000.parquet": train.slice(0, 5), "data/train-0001.parquet": train.slice(5)}
    sharded = opened(write_parquet(tmp_path / "sharded", {**files, "data/test-00000-of-00001.parquet": test}))
    for dataset in (saved, sharded):
        assert dataset.class_names == tuple(NAMES)  # the order of the feature
        split = dataset.train()
        assert split.labels.tolist() == [0, 1, 2] * 3
        for index, image in enumerate(split.images):
            assert (image == np.asarray(Image.open(io.BytesIO(png(index))))).all()
        assert dataset.test().labels.tolist() == [0, 1, 2] * 2
    assert (saved.name, sharded.name) == ("hf:saved", "hf:sharded")
    assert saved.train_sha256() == sharded.train_sha256()
    assert saved.test_sha256() == sharded.test_sha256() != saved.train_sha256()


def test_parts_that_are_missing_are_held_out_by_groups(tmp_path):
    groups = [f"patient {index // 3}" for index in range(30)]
    made = table(30, labels=[index // 3 % 2 for index in range(30)], group=groups)
    parquet.write_table(made, tmp_path / "one.parquet")
    dataset = opened(tmp_path / "one.parquet")
    parts = [{item.group for item in items} for items in (dataset.train_items, dataset.val_items, dataset.test_items)]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts)) == 10
    save_to_disk(tmp_path / "both", {"train": made, "validation": made})
    with pytest.raises(InputError, match=r"the group patient \d of .* is in train and in val"):
        opened(tmp_path / "both")


def test_columns_are_found_by_type_or_by_name(tmp_path, capsys):
    plain = table(12, features=None, labels=["b", "a", "c"] * 4, images="img", label="label")
    parquet.write_table(plain, tmp_path / "plain.parquet")
    assert opened(tmp_path / "plain.parquet").class_names == ("a", "b", "c")
    both = table(12, features={**FEATURES, "label": FEATURES["kind"]}, label="label", kind=[0] * 12)
    parquet.write_table(both, tmp_path / "both.parquet")
    assert opened(tmp_path / "both.parquet").class_names == tuple(NAMES)
    assert "labels are read from the column label, not from kind" in capsys.readouterr().err
    parquet.write_table(pa.table({"text": ["a"], "label": [1]}), tmp_path / "text.parquet")
    with pytest.raises(InputError, match=r"text.parquet has the columns text \(string\), label \(int64\)"):
        opened(tmp_path / "text.parquet")
    parquet.write_table(table(3, features=None, labels=[0.5] * 3, label="label"), tmp_path / "share.parquet")
    with pytest.raises(InputError, match=r"the labels label of .* are double"):
        opened(tmp_path / "share.parquet")


def test_a_test_split_without_labels_is_not_used_and_training_images_need_them(tmp_path, capsys):
    save_to_disk(tmp_path / "secret", {"train": table(30), "test": table(3, labels=[-1] * 3)})
    assert len(opened(tmp_path / "secret").test_items) == 6  # held out
    assert "the split test has images without labels and is not used" in capsys.readouterr().err
    save_to_disk(tmp_path / "none", {"train": table(3, labels=[0, 1, None])})
    with pytest.raises(InputError, match=r"train\[2\] of .*none has no label"):
        opened(tmp_path / "none")
    save_to_disk(tmp_path / "new", {"train": table(6, labels=[0, 1] * 3), "test": table(3)})
    with pytest.raises(InputError, match=r"test\[2\] of .* has the class ant, which train has not"):
        opened(tmp_path / "new")


def test_what_is_damaged_is_named(tmp_path):
    cells = [{"bytes": png(index), "path": None} for index in range(9)]
    cells[4], cells[5] = {"bytes": png(4)[:60], "path": None}, {"bytes": None, "path": "here.png"}
    made = table().set_column(0, "picture", pa.array(cells, CELL))
    save_to_disk(tmp_path / "images", {"train": made, "test": table(3)})
    with pytest.raises(InputError, match=r"train\[4\]: .*train\[5\]: the data set has its path and not its bytes"):
        opened(tmp_path / "images")
    folder = write_parquet(tmp_path / "cut", {"train.parquet": table()})
    (folder / "train.parquet").write_bytes((folder / "train.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"cannot read .*train.parquet"):
        opened(folder)
    dataset = opened(write_parquet(tmp_path / "changed", {"train.parquet": table(12)}))
    write_parquet(tmp_path / "changed", {"train.parquet": table(12, first=1)})
    hugging_face._cells.cache_clear()
    with pytest.raises(InputError, match=r"train.parquet has changed"):
        dataset.train()


def test_splits_that_are_no_part_are_ignored_aloud(tmp_path, capsys):
    opened(save_to_disk(tmp_path / "saved", {"train": table(12), "unsupervised": table(3)}))
    opened(write_parquet(tmp_path / "files", {"train-0.parquet": table(12), "more-0.parquet": table(3)}))
    log = capsys.readouterr().err
    assert "saved: ignoring unsupervised: neither train, val nor test" in log
    assert "files: ignoring more-0.parquet: neither train, val nor test" in log


def test_two_splits_of_one_part_are_refused(tmp_path):
    save_to_disk(tmp_path / "both", {"train": table(), "valid": table(3), "validation": table(3, first=50)})
    with pytest.raises(InputError, match="has the splits train, valid, validation, of which two are the same part"):
        opened(tmp_path / "both")


def test_other_folders_are_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has the splits \(none\)"):
        opened(tmp_path / "empty")
    write_parquet(tmp_path / "two", {f"{config}/train/0000.parquet": table() for config in ("a", "b")})
    with pytest.raises(InputError, match="train images in several folders: a/train, b/train") as caught:
        opened(tmp_path / "two")
    assert "one of them" in caught.value.hint
    assert opened(tmp_path / "two" / "a").class_names == tuple(NAMES)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    with pytest.raises(InputError, match=r"cannot read .*state.json"):
        opened(tmp_path / "saved")
    with pytest.raises(InputError, match="the data set /no/such/folder does not exist"):
        opened("/no/such/folder")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Let the hub be at an address of this machine; its cache is empty."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def at(address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    at("http://127.0.0.1:9")  # nobody listens here
    return at


@pytest.mark.parametrize("revision", ["main", "refs/convert/parquet"])
def test_a_data_set_of_the_hub_is_fetched_once_and_then_found_without_a_network(revision, hub, tmp_path, capsys):
    write_parquet(tmp_path, {"train.parquet": table(30)})
    files = {"README.md": b"about", "plain/train/0000.parquet": (tmp_path / "train.parquet").read_bytes()}
    nobody = "http://127.0.0.1:9"
    with serve_dataset({"main": {"README.md": b"about", "images.zip": b"zip"}, revision: files}) as address:
        hub(address)
        fetched = opened("owner/name")
        hub(nobody)
        again = opened("owner/name")
    assert (fetched.class_names, len(fetched.items)) == (tuple(NAMES), 30)
    assert again.train_sha256() == fetched.train_sha256()
    assert opened("owner/name/plain").train_sha256() == fetched.train_sha256()


def test_without_a_network_the_next_command_is_named(hub):
    with pytest.raises(StageError, match="owner/name is not a path here and is not available on the") as caught:
        opened("owner/name")
    assert "`hf download --repo-type dataset owner/name --include '*.parquet'`" in caught.value.hint


def test_a_command_reads_it(tmp_path):
    save_to_disk(tmp_path / "saved", {"train": table(30), "test": table(9, first=50)})
    result = invoke("data", "--data", f"hf:{tmp_path / 'saved'}", "--image-size", "16")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["classes"] == NAMES
