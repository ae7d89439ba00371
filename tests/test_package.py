"""What the package promises: its contents, its public names, and an install without PyTorch that works on a device."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pipeline", "export", "benchmarks")
BUNDLE = ROOT / "artifacts" / "reference" / "bundle"


def modules():
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))] + sorted(
        (ROOT / "kdedge").glob("*.py")
    )


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize(
    "path",
    [p for p in modules() if p.name not in ("__init__.py", "__main__.py", "standalone.py", "standalone_signal.py")],
    ids=name,
)
def test_a_module_says_what_is_public_and_documents_it(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a module begins with what it is for"
    listed = next(
        (
            ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and _target(node) == "__all__"
        ),
        None,
    )
    assert listed is not None, "__all__ is missing"
    defined = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assigned = {_target(node) for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)}
    imported = {
        alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    for public in listed:
        assert public in defined.keys() | assigned | imported
        if public in defined:
            assert ast.get_docstring(defined[public]), f"{public} has no docstring"


def _target(node):
    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
    return target.id if isinstance(target, ast.Name) else ""


def test_benchmarks_never_import_pytorch():
    for path in (ROOT / "benchmarks").rglob("*.py"):
        assert not re.search(r"^\s*(import|from) torch", path.read_text(), re.M), path


def test_the_documents_name_every_dependency_with_its_purpose():
    project = (ROOT / "pyproject.toml").read_text()
    page = (ROOT / "docs" / "how-it-works.md").read_text()
    table = tomllib.loads(project)["project"]
    listed = [*table["dependencies"], *(item for extra in table["optional-dependencies"].values() for item in extra)]
    wanted = {re.split(r"[>=\[<]", item)[0] for item in listed} - {"kdedge-int8"}
    missing = [dependency for dependency in sorted(wanted) if f"| `{dependency}` |" not in page]
    assert not missing


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_holds_the_source_tree_and_nothing_else(wheel):
    packed = {entry for entry in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in entry}
    tree = {
        f"kdedge/{path.relative_to(ROOT).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert packed == tree | {f"kdedge/{path.name}" for path in (ROOT / "kdedge").glob("*.py")}


@pytest.fixture(scope="session")
def device(wheel, tmp_path_factory):
    """A clean environment with the base install and onnxruntime: what a device gets."""
    folder = tmp_path_factory.mktemp("device")
    venv.create(folder / "env", with_pip=True)
    python = folder / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", f"{wheel}[cpu]"], check=True, capture_output=True, text=True)
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}

    def kdedge(*arguments, code=0):
        command = [python.with_name("kdedge"), *map(str, arguments)]
        env = {**clean, "HOME": str(folder)}
        result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=env, check=False)
        assert result.returncode == code, result.stderr
        return result

    kdedge.root = folder
    return kdedge


@pytest.mark.slow
def test_a_device_needs_no_pytorch_and_little_space(device):
    site = next((device.root / "env").rglob("site-packages"))
    installed = {path.name for path in site.iterdir()}
    assert not {"torch", "onnx", "torchvision", "matplotlib"} & installed
    size = sum(p.stat().st_size for p in site.rglob("*") if p.is_file() and "pip" not in p.relative_to(site).parts[0])
    assert size <= 222e6  # of which the sample of CIFAR-10 takes 11 MB


@pytest.mark.slow
def test_a_device_can_verify_predict_and_measure(device):
    assert "run-all" in device("--help").stdout
    assert device("doctor", "--json").returncode == 0
    assert "verified" in device("verify", BUNDLE).stdout
    rows = device("predict", BUNDLE, BUNDLE / "golden_inputs.npy", "--json").stdout.splitlines()
    assert len(rows) == 16
    assert json.loads(rows[0])["label"] in (BUNDLE / "labels.txt").read_text().split()
    options = ["--data", "sample", "--latency-seconds", "0.2", "--latency-batches", "1", "--allow-undecided"]
    result = device("benchmark", BUNDLE, *options)
    assert json.loads(result.stdout.splitlines()[-1])["accuracy"]["n"] == 1000


@pytest.mark.slow
def test_a_device_says_which_extra_training_needs(device):
    result = device("teacher", "--data", "sample", code=2)
    assert ".whl[train]'" in result.stderr
    assert "Traceback" not in result.stderr
