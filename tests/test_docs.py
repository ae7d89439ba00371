"""The README and the pages in docs/: generated parts are today's, commands work, links lead somewhere."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from generate import PAGES, fill
from PIL import Image
from typer.testing import CliRunner

from kdedge.export.bundle.contents import BUNDLE_FILES, SBOM
from kdedge.export.runtimes.registry import RUNTIMES
from kdedge.ownership import MANIFEST, SIGNATURE
from kdedge.pipeline.cli import app
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.config.checks import RUN_ALL_FLAGS, RUN_FLAGS

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "artifacts" / "reference" / "bundle"
README = ROOT / "README.md"
CHEAP = ("data --data sample", "doctor", "predict", "verify")


def name(path):
    return path.relative_to(ROOT).as_posix()


def blocks(page, language):
    """Return the code blocks of a page in this language, without comments and continued lines."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [re.sub(r"\\\n\s*", "", re.sub(r"\s+# .*", "", block)) for block in found]


def commands():
    """Return every shell command of the pages, as (page, words)."""
    for page in [*PAGES, ROOT / "CONTRIBUTING.md"]:
        for block in blocks(page, "bash"):
            for line in re.split(r"\n|&&", block):
                if words := shlex.split(line, comments=True):
                    words = words[words.index("-m") + 1 :] if words[0] == "torchrun" else words
                    yield pytest.param([Path(words[0]).name, *words[1:]], id=f"{page.stem}: {line.strip()[:60]}")


KDEDGE = [command for command in commands() if command.values[0][0] == "kdedge"]
OTHERS = [command for command in commands() if command.values[0][0] != "kdedge"]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_the_generated_parts_are_current(page):
    assert fill(page.read_text()) == page.read_text(), "run: make docs-generate"


@pytest.mark.parametrize("command", KDEDGE)
def test_a_kdedge_command_has_options_that_exist(command):
    _, subcommand, *arguments = command
    parsed = typer.main.get_command(app).commands[subcommand].make_context(subcommand, arguments)
    fields = {}
    for key, value in parsed.params.items():
        section, _, field = key.partition("__")
        if field and value is not None:
            fields.setdefault(section, {})[field] = value
    build_config(fields, flags=RUN_ALL_FLAGS if subcommand == "run-all" else RUN_FLAGS)


@pytest.fixture
def user_folder(tmp_path, monkeypatch):
    """A working directory with the files that the commands name."""
    (tmp_path / "artifacts").symlink_to(ROOT / "artifacts")
    (tmp_path / "bundle").symlink_to(BUNDLE)
    Image.new("RGB", (40, 30), "brown").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)


def cheap(words):
    return " ".join(words).startswith(CHEAP) and not {"BUNDLE", "--emulate"} & set(words)


@pytest.mark.usefixtures("user_folder")
@pytest.mark.parametrize("command", [item for item in KDEDGE if cheap(item.values[0][1:])])
def test_a_cheap_kdedge_command_runs(command):
    result = CliRunner().invoke(app, command[1:])
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", OTHERS)
def test_another_command_names_what_exists(command):
    program, *arguments = command
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif program.startswith("python") and arguments[0] != "-m":
        path = arguments[0].replace("bundle/", "artifacts/reference/bundle/")
        assert (ROOT / path).exists()
    elif program == "pip":
        for listed in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
            assert set(listed.split(",")) <= extras.keys()
    else:
        assert program in ("python3", "python", "scp", "npm", "pytest", "zensical", "cc", "openssl"), program


@pytest.mark.usefixtures("user_folder")
def test_python_examples_run(capsys):
    examples = [block for page in PAGES for block in blocks(page, "python")]
    assert examples
    for example in examples:
        exec(compile(example, "example", "exec"), {})
        assert "deer" in capsys.readouterr().out


def test_toml_examples_are_options():
    for example in [block for page in PAGES for block in blocks(page, "toml")]:
        build_config(tomllib.loads(re.sub(r"^ +", "", example, flags=re.MULTILINE)))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "artifacts/reference/README.md"], ids=name)
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text()
    for link, anchor in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text):
        target = (page.parent / link) if link else page
        assert target.exists(), link
        if anchor:
            titles = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, anchor
    for path in re.findall(r"`((?:pipeline|export|benchmarks|docs|tests|artifacts/reference)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


def test_every_page_is_in_the_site():
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    listed = {path for entry in site["nav"] for path in entry.values()}
    assert {page.name for page in PAGES if page != README} == {path for path in listed if "/" not in path}
    for path in listed:
        assert (ROOT / path.removeprefix("repository/")).exists() or (ROOT / "docs" / path).exists()


def test_the_page_on_deployment_names_the_files_of_a_bundle():
    table = (ROOT / "docs" / "deployment.md").read_text().partition("| --- | --- |")[2].partition("\n\n")[0]
    named = {name for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.partition(" | ")[0])}
    of_runtimes = {name for runtime in RUNTIMES.values() for name in runtime.files}
    assert named == {*BUNDLE_FILES, SBOM, MANIFEST, SIGNATURE, *of_runtimes}


def test_the_readme_is_short():
    lines = README.read_text().splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


def test_the_readme_shows_what_its_model_predicts():
    """The golden logits of the INT8 model are the same on every CPU, so no model needs to run here."""
    shown = re.findall(r"^(\w+) +([\d.]+) %  \S+golden_inputs\.npy\[(\d+)\]$", README.read_text(), flags=re.MULTILINE)
    bundle = ROOT / "artifacts" / "reference" / "front" / "lite"
    rows = CliRunner().invoke(app, ["predict", str(bundle), str(bundle / "golden_inputs.npy"), "--json"]).stdout
    answers = [json.loads(line) for line in rows.splitlines()]
    assert len(shown) == 2
    for label, percent, index in shown:
        answer = answers[int(index)]
        assert (label, percent) == (answer["label"], f"{100 * answer['probability']:.2f}")
