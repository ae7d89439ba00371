"""A study of two epochs on a tiny data set, trained once."""

import shutil
import sys

import pytest
from studies import kdedge
from tiny import TINY

DROPPED = ("--distill-epochs", "--calibration-images", "--latency-seconds", "--latency-batches")
OPTIONS = [
    part for flag, value in zip(TINY[:-1:2], TINY[1:-1:2], strict=True) for part in (flag, value) if flag not in DROPPED
]


@pytest.fixture(autouse=True)
def quick(plain_figures, brief_search):
    """What a study draws and how long it times candidates is tested elsewhere."""


@pytest.fixture(scope="package")
def study(tmp_path_factory, folder_data):
    out = tmp_path_factory.mktemp("study") / "compare"
    command = ["compare", "--data", f"folder:{folder_data}", *OPTIONS, "--out", out, "--epochs", 2, "--seeds", "0,1"]
    return out, [*command, "--methods", "selective,ce,kd", "--target-accuracy", 20]


@pytest.fixture(scope="package")
def compared(study):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["kdedge", *map(str, study[1])])
        return kdedge(*study[1])


@pytest.fixture
def copied(study, compared, tmp_path):
    """The finished study to change: its directory and its command."""
    out = shutil.copytree(study[0], tmp_path / study[0].name, symlinks=True)
    return out, [out if part == study[0] else part for part in study[1]]
