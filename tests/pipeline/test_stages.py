"""What decides whether a stage has to run again."""

import pytest

from pipeline.configure import build_config
from pipeline.stages import STAGES


@pytest.mark.parametrize("stage", ["teacher", "distill"])
def test_initial_weights_count_by_what_their_files_hold(stage, tmp_path):
    file = tmp_path / "weights.safetensors"
    config = build_config({stage: {"weights": str(file)}})
    keys = []
    for content in (b"one", b"two", b"one"):
        file.write_bytes(content)
        keys.append(STAGES[stage].key(config))
    assert keys[0] != keys[1]
    assert keys[0] == keys[2]
    assert "weights_sha256" not in STAGES[stage].key(build_config())
