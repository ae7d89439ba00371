"""Where a bundle comes from: its signature and its bill of materials."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from command_line import invoke
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from kdedge.export.bundle.signing import load_private_key, sign_bundle
from kdedge.export.bundle.verify import verify_bundle
from kdedge.files import file_sha256, write_json
from kdedge.manifest import load_manifest, sealed
from kdedge.pipeline.exchange import discard

NO_PASSWORD = NoEncryption()
REFERENCE = Path(__file__).resolve().parents[2] / "artifacts" / "reference" / "bundle"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """Return a private and the matching public key, as OpenSSL writes them."""
    key = Ed25519PrivateKey.generate()
    private, public = tmp_path / "key.pem", tmp_path / "pub.pem"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NO_PASSWORD))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def signed(make_bundle: Callable[..., Path], keys: tuple[Path, Path]) -> Iterator[Path]:
    bundle = make_bundle()
    sign_bundle(bundle, load_private_key(keys[0]))
    return bundle


def said(*arguments: object) -> str:
    result = invoke("verify", *arguments)
    return f"{result.exit_code}: {' '.join((result.stdout or result.stderr).split())}"


def alter_with_manifest(bundle: Path) -> None:
    """Alter a file and the manifest to match, as an attacker would."""
    (bundle / "predict.py").write_text("print('evil')")
    manifest = load_manifest(bundle)
    manifest["outputs"]["predict.py"] = file_sha256(bundle / "predict.py")
    write_json(bundle / "manifest.json", sealed(manifest))


def test_verify_says_no_more_than_it_knows(signed: Path, keys: tuple[Path, Path]) -> None:
    unknown = "a change of files and manifest together would not be found"
    text = said(signed)
    assert text.startswith("0: verified")
    assert "11 files unchanged since manifest.json was written" in text
    assert f"it has a signature, which was not checked (--key); {unknown}" in text
    digest = file_sha256(signed / "manifest.json")
    assert said(signed, "--sha256", digest).endswith("as expected with --sha256")
    by = verify_bundle(signed, key=keys[1])["signed_by"]
    assert said(signed, "--key", keys[1]).endswith(f"signed by {by}")
    alter_with_manifest(signed)
    assert said(signed).startswith("0: verified"), "which is why it says so"
    assert f"1: error: {signed} is not signed with the key {by}, or manifest.json was altered since" in said(
        signed, "--key", keys[1]
    )
    (signed / "manifest.json.sig").unlink()
    assert f"not signed; {unknown}" in said(signed)
    assert f"1: error: {signed} is not signed: manifest.json.sig is missing" in said(signed, "--key", keys[1])


def test_the_key_of_another_does_not_fit(signed: Path, keys: tuple[Path, Path]) -> None:
    other = keys[1].with_name("other.pem")
    public = Ed25519PrivateKey.generate().public_key()
    other.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    assert "is not signed with the key" in said(signed, "--key", other)


def test_compiled_python_is_not_ignored_where_the_origin_matters(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / "__pycache__").mkdir()
    (signed / "__pycache__" / "predict.cpython-311.pyc").write_bytes(b"evil")
    assert said(signed).startswith("0: verified")
    assert "predict.cpython-311.pyc does not belong to it" in said(signed, "--key", keys[1])


def test_openssl_checks_the_signature_and_the_fingerprint(signed: Path, keys: tuple[Path, Path]) -> None:
    if not shutil.which("openssl"):
        pytest.skip("no openssl")
    command = ["openssl", "pkeyutl", "-verify", "-pubin", "-inkey", keys[1], "-rawin", "-in", "manifest.json",
               "-sigfile", "manifest.json.sig"]  # fmt: skip
    assert subprocess.run(command, cwd=signed, capture_output=True, check=False).returncode == 0
    der = keys[1].with_name("pub.der")
    subprocess.run(["openssl", "pkey", "-pubin", "-in", keys[1], "-outform", "DER", "-out", der], check=True)
    assert file_sha256(der) == verify_bundle(signed, key=keys[1])["signed_by"]
    (signed / "manifest.json").write_bytes((signed / "manifest.json").read_bytes() + b" ")
    assert subprocess.run(command, cwd=signed, capture_output=True, check=False).returncode != 0


def test_files_that_are_no_keys_are_refused_before_any_work(
    keys: tuple[Path, Path], make_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    locked, foreign, text = (tmp_path / name for name in ("locked.pem", "rsa.pem", "text.pem"))
    key = load_private_key(keys[0])
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    number = rsa.generate_private_key(65537, 1024)
    foreign.write_bytes(number.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NO_PASSWORD))
    text.write_text("no key")
    for file in (locked, foreign, text, keys[1]):
        for command in ("bundle", "run-all"):
            result = invoke(command, "--data", "sample", "--out", tmp_path / "new", "--sign", file)
            assert result.exit_code == 2
            assert "is not a private Ed25519 key in PEM without a password" in " ".join(result.stderr.split())
    assert invoke("bundle", "--data", "sample", "--out", tmp_path / "new", "--sign", tmp_path / "no").exit_code == 2
    assert not (tmp_path / "new").exists()
    assert "is not a public Ed25519 key in PEM" in said(make_bundle(), "--key", keys[0])


def test_without_cryptography_the_extra_is_named_before_any_work(
    keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "kdedge.export.bundle.signing")
    for name in [name for name in sys.modules if name.partition(".")[0] == "cryptography"]:
        monkeypatch.setitem(sys.modules, name, None)
    for command in (
        ("run-all", "--data", "sample", "--out", tmp_path / "new", "--sign", keys[0]),
        ("verify", REFERENCE, "--key", keys[1]),
    ):
        result = invoke(*command)
        assert result.exit_code == 2
        assert "error: this command needs cryptography" in result.stderr
        assert "[sign]" in result.stderr
    assert not (tmp_path / "new").exists()


def test_a_signature_does_not_survive_its_bundle(signed: Path) -> None:
    new = shutil.copytree(signed, signed.with_name("new"))
    (new / "manifest.json.sig").unlink()
    discard(signed, new)
    assert not (new / "manifest.json.sig").exists()


def test_the_bill_of_materials_is_valid_and_names_models_data_and_packages(make_bundle: Callable[..., Path]) -> None:
    bundle = make_bundle()
    text = (bundle / "sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = json.loads(text)
    model = found["metadata"]["component"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": file_sha256(bundle / "student.int8.onnx")}]
    parts = {item["bom-ref"]: item for item in found["components"]}
    assert {"student.onnx", "data/test"} <= parts.keys()
    history = load_manifest(bundle)["facts"]["history"]
    assert parts["data/test"]["properties"][0] == {"name": "kdedge:data_sha256", "value": history["data"]["data/test"]}
    assert [item["ref"] for item in model["modelCard"]["modelParameters"]["datasets"]] == sorted(history["data"])
    (needs,) = [item["dependsOn"] for item in found["dependencies"] if item["ref"] == "student.int8.onnx"]
    assert [name.split("@")[0] for name in needs] == ["pkg:pypi/numpy", "pkg:pypi/onnxruntime"]
