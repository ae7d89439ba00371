"""Running a model on emulated CPUs: with a qemu that runs its arguments natively, and with the real one."""

import json
import re
import site
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from kdedge.benchmarks.emulate import arm64_root
from kdedge.benchmarks.emulate import emulator as module
from kdedge.benchmarks.emulate.cpus import CPUS
from kdedge.benchmarks.emulate.emulator import check_emulators, emulate, emulation_checks
from kdedge.benchmarks.host import host_record
from kdedge.benchmarks.options import BenchmarkConfig
from kdedge.benchmarks.sampling import stratified_sample
from kdedge.dataset import Split
from kdedge.errors import InputError, StageError
from kdedge.export.bundle.verify import check_flips, emulate_bundle
from kdedge.pipeline.cli import app
from kdedge.pipeline.config.build import build_config
from kdedge.pipeline.data.sources import open_dataset
from kdedge.pipeline.stages import benchmark as evaluate
from kdedge.pipeline.stages.benchmark_setup import emulation
from kdedge.pipeline.stages.registry import STAGES

BUNDLE = Path(__file__).parents[2] / "artifacts" / "reference" / "bundle"
MODEL = BUNDLE / "student.int8.onnx"

VERSION = '[ "$1" = --version ] && echo "qemu version 9.9 (fake)" && exit 0\n'
# The program is then: PYTHON -I -S -B emulated.py MODEL PIXELS LOGITS BATCH FOLDER...
NATIVE = VERSION + 'shift 2; [ "$1" = -L ] && shift 2; "$@"\n'
OTHER = f"""{NATIVE}exec {sys.executable} -c 'import sys, numpy as np
logits = np.load(sys.argv[1])
logits[3] = -logits[3]
logits[4] += 0.25
np.save(sys.argv[1], logits)' "$8"
"""
CRASH = VERSION + 'echo "qemu: uncaught target signal 11 (Segmentation fault)" >&2; exit 139\n'


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Replace the tools on the PATH by scripts, and claim nothing about the features of the CPU that runs them."""
    host_record()  # asked for once per process, with the tools of this machine
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("KDEDGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "platform", SimpleNamespace(machine=lambda: "x86_64"))
    monkeypatch.setattr(module, "CPUS", {name: replace(cpu, has=(), lacks=()) for name, cpu in CPUS.items()})

    def install(name, script):
        path = folder / name
        path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}")
        path.chmod(0o755)
        return path

    return install


@pytest.fixture
def golden():
    return np.load(BUNDLE / "golden_inputs.npy")


def verify(*arguments):
    return CliRunner().invoke(app, ["verify", str(BUNDLE), *map(str, arguments)])


# The library -----------------------------------------------------------------------------------------------------


def test_the_same_answers(tools, golden):
    tools("qemu-x86_64", NATIVE)
    result = emulate(MODEL, golden, "haswell")
    assert (result.logits == result.native_logits).all()
    assert result.logits.shape == (16, 10)
    facts = json.loads(json.dumps(result.as_dict()))
    assert facts.items() >= {"cpu": "haswell", "images": 16, "flips": 0, "flipped": [], "max_abs_diff": 0.0}.items()
    assert facts["qemu"] == "qemu-x86_64 9.9"


def test_other_answers_are_a_result(tools, golden):
    tools("qemu-x86_64", OTHER)
    result = emulate(MODEL, golden, "haswell")
    native = result.native_logits
    assert result.flipped == ((3, native[3].argmax(), native[3].argmin()),)
    assert result.max_abs_diff == pytest.approx(2 * np.abs(native[3]).max(), rel=1e-6)
    assert result.max_rel_diff == pytest.approx(result.max_abs_diff / np.abs(native).max(), rel=1e-6)
    assert result.as_dict()["flipped"] == [
        {"image": 3, "native": native[3].argmax(), "emulated": native[3].argmin()},
    ]


def test_what_is_no_number_counts_as_another_answer(tools, golden):
    tools("qemu-x86_64", OTHER.replace("logits[4] += 0.25", "logits[4] = np.nan"))
    result = emulate(MODEL, golden, "haswell")
    assert [flip[0] for flip in result.flipped] == [3, 4]
    assert np.isfinite(result.max_abs_diff)


def test_the_static_build_of_qemu_does(tools, golden):
    tools("qemu-x86_64-static", NATIVE)
    assert emulate(MODEL, golden[:1], "haswell").qemu == "qemu-x86_64-static 9.9"


def test_only_numpy_and_onnxruntime_of_the_user_are_imported(tools, golden, tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('PYTHONPATH was read')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    tools("qemu-x86_64", NATIVE)
    assert not emulate(MODEL, golden[:1], "haswell").flipped


def test_a_crash_is_told_with_its_last_words(tools, golden):
    tools("qemu-x86_64", CRASH)
    with pytest.raises(StageError, match=r"haswell ended after 0 of 16 images: qemu: uncaught target signal 11"):
        emulate(MODEL, golden, "haswell")


def test_a_qemu_that_shows_another_cpu_is_refused(tools, golden, monkeypatch):
    tools("qemu-x86_64", NATIVE)
    wrong = replace(CPUS["haswell"], has=("AVX9",), lacks=())
    monkeypatch.setattr(module, "CPUS", {"haswell": wrong})
    with pytest.raises(StageError, match="shows another CPU than haswell: the program sees no AVX9") as caught:
        emulate(MODEL, golden, "haswell")
    assert "7.2" in caught.value.hint


def test_images_must_fit(tools, golden):
    tools("qemu-x86_64", NATIVE)
    for images in (golden[:0], golden[:, :16], golden.astype(np.float32)):
        with pytest.raises(InputError, match="cannot take inputs"):
            emulate(MODEL, images, "haswell")


def test_a_missing_qemu_is_told_with_what_installs_it(tools):
    for cpu, qemu in (("haswell", "qemu-x86_64"), ("cortex-a76", "qemu-aarch64")):
        with pytest.raises(StageError, match=f"emulating {cpu} needs {qemu}, which is not installed") as caught:
            check_emulators([cpu])
        assert "apt install qemu-user" in caught.value.hint
    assert {check["status"] for check in emulation_checks()} == {"missing"}


def test_x86_needs_an_x86_host(tools, monkeypatch):
    tools("qemu-x86_64", NATIVE)
    monkeypatch.setattr(module, "platform", SimpleNamespace(machine=lambda: "aarch64"))
    with pytest.raises(StageError, match="needs an x86-64 host; this one is aarch64"):
        check_emulators(["haswell"])


def test_an_unknown_cpu(tools):
    with pytest.raises(InputError, match=r"'cortex-a67' \(did you mean 'cortex-a7[26]'") as caught:
        check_emulators(["cortex-a67"])
    assert "haswell, cortex-a76, cortex-a72" in caught.value.hint


def test_doctor_says_what_can_be_emulated(tools):
    tools("qemu-x86_64", NATIVE)
    tools("qemu-aarch64", NATIVE)
    checks = {check["name"]: check for check in emulation_checks()}
    assert list(checks) == [f"emulate {name}" for name in CPUS]
    assert checks["emulate haswell"]["detail"].endswith("qemu-x86_64 9.9")
    assert "downloaded at the first use" in checks["emulate cortex-a72"]["detail"]


# The arm64 root --------------------------------------------------------------------------------------------------

APT = """for part; do case $part in Dir::Cache=*) cache=${part#*=};; esac; done
case "$*" in *install*) touch $cache/archives/python3.deb;; *) echo "E: a source has no arm64" >&2; exit 100;; esac
"""
DPKG = f"""mkdir -p $3/usr/bin
printf '#!/bin/sh\\nexec {sys.executable} "$@"\\n' > $3/usr/bin/python3.11
chmod +x $3/usr/bin/python3.11
"""
PACKAGES = next(path for path in map(Path, [*site.getsitepackages(), *sys.path]) if (path / "onnxruntime").is_dir())
PIP = f"""while [ "$1" != --target ]; do shift; done
ln -s {PACKAGES} $2
case "$*" in *"--python-version 3.11"*"--platform manylinux"*aarch64*onnxruntime==*) ;; *) exit 1;; esac
"""


@pytest.fixture
def debian(tools, monkeypatch):
    """A Debian whose packages hold this very Python."""
    tools("qemu-aarch64", NATIVE)
    tools("apt-get", APT)
    tools("dpkg-deb", DPKG)
    pip = tools("fake-pip", PIP)
    monkeypatch.setattr(arm64_root, "sys", SimpleNamespace(executable=str(pip)))
    return tools


def test_the_root_is_built_once_and_used(debian, golden, tmp_path, capsys):
    assert not emulate(MODEL, golden, "cortex-a76").flipped
    root = arm64_root.root_path()
    assert "building" in capsys.readouterr().err
    assert {path.name for path in root.iterdir()} == {"usr", "lib", "site"}
    debian("apt-get", "exit 1")
    assert not emulate(MODEL, golden[:2], "cortex-a72").flipped
    assert "building" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("tool", "script", "message"),
    [
        ("apt-get", "echo 'E: Unable to locate package python3-minimal' >&2; exit 100",
         "fetching arm64 packages failed: E: Unable to locate package python3-minimal"),
        ("dpkg-deb", "exit 2", r"unpacking python3\.deb failed: exit code 2"),
        ("fake-pip", "echo No module named pip; exit 1", "fetching aarch64 wheels failed: No module named pip"),
        ("dpkg-deb", "exit 0", r"has no usr/bin/python3\.N"),
    ],
)  # fmt: skip
def test_a_root_that_cannot_be_built(debian, tool, script, message):
    debian(tool, script)
    with pytest.raises(StageError, match=message) as caught:
        check_emulators(["cortex-a76"])
    assert caught.value.hint
    assert not arm64_root.root_path().exists()


def test_a_missing_tool_is_told_with_another_way(tools):
    tools("qemu-aarch64", NATIVE)
    with pytest.raises(StageError, match="fetching arm64 packages needs apt-get, which is not installed") as caught:
        check_emulators(["cortex-a72"])
    assert f"copy {arm64_root.root_path()}" in caught.value.hint


def test_a_cache_that_cannot_be_written(debian, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("KDEDGE_CACHE", str(tmp_path / "file"))
    with pytest.raises(StageError, match="cannot write to") as caught:
        check_emulators(["cortex-a72"])
    assert "KDEDGE_CACHE" in caught.value.hint


# kdedge verify ---------------------------------------------------------------------------------------------------


def test_verify_reports_each_cpu(tools):
    tools("qemu-x86_64", NATIVE)
    result = verify("--emulate", "haswell")
    assert result.exit_code == 0, result.output
    assert re.search(r"haswell: 16 inputs, 0 flips, logits identical, \d+ s\nverified: ", result.stdout)


def test_verify_takes_test_images(tools):
    tools("qemu-x86_64", NATIVE)
    options = ("--emulate-images", 20, "--data", "sample", "--json")
    result = verify("--emulate", "haswell, haswell", "--emulate", "haswell", *options)
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["emulated"]
    assert (row["images"], row["golden_images"], row["test_images"]) == (36, 16, 20)
    assert row["golden_max_abs_diff"] <= 1e-3
    result = verify("--emulate", "haswell", "--emulate-images", 1001, "--data", "sample")
    assert result.exit_code == 2
    assert "1000 test images, fewer than 1001" in result.stderr


def test_verify_refuses_a_model_that_is_not_portable(tools):
    tools("qemu-x86_64", OTHER)
    result = verify("--emulate", "haswell", "--json")
    assert result.exit_code == 1
    (row,) = json.loads(result.stdout)["emulated"]
    assert row["flips"] == 1
    assert row["flipped"][0]["image"] == "golden 3"
    assert re.search(
        r"not portable: haswell predicts another class for 1 of 16 inputs \(golden 3: \w+ for \w+\)", result.stderr
    )
    result = verify("--emulate", "haswell")
    assert result.exit_code == 1
    assert "verified" not in result.stdout


def test_the_list_of_flips_is_short_and_names_test_images():
    flip = {"image": "test 7", "native": 0, "emulated": 1}
    row = {"cpu": "haswell", "images": 40, "flips": 12, "flipped": [flip] * 12}
    with pytest.raises(StageError, match=r"12 of 40 inputs \((test 7: bee for ant, ){10}…\)"):
        check_flips([row], ["ant", "bee"])
    check_flips([row | {"flips": 0, "flipped": []}], ["ant", "bee"])


def test_test_images_keep_their_numbers(tools, golden):
    tools("qemu-x86_64", OTHER.replace("[3]", "[17]"))
    (row,) = emulate_bundle(BUNDLE, ["haswell"], ([5, 170], golden[:2]))
    assert [flip["image"] for flip in row["flipped"]] == ["test 170"]


@pytest.mark.parametrize(
    ("options", "message", "code"),
    [
        (["--emulate", "haswell,pentium"], "unknown name 'pentium'", 2),
        (["--emulate", "haswell"], "needs qemu-x86_64, which is not installed", 1),
        (["--emulate-images", "5"], "are for --emulate", 2),
        (["--emulate", "haswell", "--data", "sample"], "are for --emulate-images", 2),
    ],
)
def test_verify_says_what_is_wrong(tools, options, message, code):
    result = verify(*options)
    assert result.exit_code == code
    assert message in result.stderr
    assert "Traceback" not in result.output


# kdedge benchmark ------------------------------------------------------------------------------------------------


def benchmark(out, *arguments):
    quick = ("--latency-seconds", 0.05, "--latency-batches", 1, "--limit-pp", 5, "--out", out)
    return CliRunner().invoke(app, ["benchmark", str(BUNDLE), "--data", "sample", *map(str, (*quick, *arguments))])


def golden_split():
    images = np.load(BUNDLE / "golden_inputs.npy")
    return Split(images, np.zeros(len(images), np.int64))


def test_benchmark_runs_a_sample_of_the_test_images_on_each_cpu(tools, tmp_path):
    tools("qemu-x86_64", OTHER)
    result = benchmark(tmp_path, "--emulate", "haswell", "--emulate-images", 20)
    assert result.exit_code == 0, result.output
    assert "not portable: 1 of 20 predictions differ on haswell" in result.stdout
    (row,) = json.loads((tmp_path / "report.json").read_text())["portability"]["emulated"]
    assert row["images"] == 20
    test = open_dataset(build_config({"data": {"source": "sample"}}).data).test()
    drawn = sorted(stratified_sample(test.labels, 20, seed=0))
    assert np.bincount(test.labels[drawn]).tolist() == [2] * 10
    assert [flip["image"] for flip in row["flipped"]] == [drawn[3]]
    assert json.loads(result.stdout.splitlines()[-1])["portability"] == {"emulated": [row]}


def test_a_run_hands_the_emulation_to_its_benchmark(tools, tmp_path, monkeypatch):
    tools("qemu-x86_64", NATIVE)
    given = {}
    monkeypatch.setattr(evaluate, "_run_facts", lambda config, inputs: {"run": {}})
    monkeypatch.setattr(evaluate, "_made_with", lambda config, inputs: True)
    monkeypatch.setattr(
        evaluate, "run_benchmark", lambda *_, **more: given.update(more) or dict.fromkeys(("accuracy", "gate", "size"))
    )
    config = build_config({"data": {"source": "sample"}, "benchmark": {"emulate": "haswell"}})
    evaluate.run(config, {"export": tmp_path, "quantize": tmp_path}, tmp_path)
    assert given["run_facts"]["run"]["commands"] == ["kdedge run-all --data sample --emulate haswell"]
    (row,) = given["emulate"](MODEL, golden_split())
    assert (row["cpu"], row["flips"]) == ("haswell", 0)


def test_benchmark_checks_emulators_before_it_measures(tools, tmp_path, monkeypatch):
    monkeypatch.setattr("kdedge.pipeline.data.sources.open_dataset", lambda *_: pytest.fail("opened the data set"))
    result = benchmark(tmp_path, "--emulate", "haswell")
    assert result.exit_code == 1
    assert "needs qemu-x86_64, which is not installed" in result.stderr
    result = benchmark(tmp_path, "--emulate", "pentium")
    assert result.exit_code == 2
    assert "--emulate 'pentium': unknown name 'pentium'" in result.stderr


def test_a_data_set_with_fewer_images_is_run_whole(tools):
    tools("qemu-x86_64", NATIVE)
    run_on_all = emulation(BenchmarkConfig(emulate="haswell", emulate_images=50))
    (row,) = run_on_all(MODEL, golden_split())
    assert (row["images"], row["flips"]) == (16, 0)
    assert emulation(BenchmarkConfig()) is None


def test_another_cpu_to_emulate_reruns_the_benchmark_alone():
    before, after = (build_config({"benchmark": {"emulate": cpus}}) for cpus in ("", "haswell"))
    changed = [name for name, spec in STAGES.items() if spec.fingerprint(before) != spec.fingerprint(after)]
    assert changed == ["benchmark"]


# The real one ----------------------------------------------------------------------------------------------------


@pytest.mark.qemu
def test_the_real_haswell_goes_into_the_report(tmp_path):
    result = benchmark(tmp_path, "--emulate", "haswell", "--emulate-images", 16)
    assert result.exit_code == 0, result.output
    (row,) = json.loads((tmp_path / "report.json").read_text())["portability"]["emulated"]
    assert (row["cpu"], row["images"], row["flips"], row["max_abs_diff"]) == ("haswell", 16, 0, 0.0)
    assert "the same 16 predictions on haswell (emulated)" in " ".join(result.stdout.split())


@pytest.mark.qemu
@pytest.mark.parametrize("cpu", CPUS)
def test_the_reference_model_is_portable(cpu):
    (row,) = emulate_bundle(BUNDLE, [cpu])
    assert row["flips"] == 0
    assert row["max_abs_diff"] == row["golden_max_abs_diff"] == 0
