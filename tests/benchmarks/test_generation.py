"""The comparison with lm-eval's backend runs, and both give the same answers."""

import json
import subprocess
import sys

import pytest

from tests.tiny_models import tiny_model, tiny_tokenizer

pytest.importorskip("lm_eval")


@pytest.mark.slow
def test_it_runs(tmp_path):
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer), max_position_embeddings=4096)
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.generation", "--model", str(tmp_path / "model")),
            *("--lengths", "1500", "2000", "--ruler", "--samples", "2"),
            *("--rounds", "1", "--json", str(tmp_path / "out.json")),
        ],
        check=True,
    )
    result = json.loads((tmp_path / "out.json").read_text())
    assert set(result["ratios"]) == set(result["same_answers"])
    assert all(share == 1 for share in result["same_answers"].values())
    assert {len(seconds) for seconds in result["rounds"].values()} == {1}
    assert len(result["prompt_tokens"]) == 4
