"""A whole pipeline on real files of the common formats, with a very small model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLKIT = (sys.executable, "-c", "from toolkit.cli import main; main()")

TEXT = """\
name: real
stages:
  vocabulary: {kind: train-tokenizer, sources: [DATA/tinyshakespeare.txt], vocab_size: 1024}
  corpus: {kind: tokenize, sources: [DATA/tinyshakespeare.txt], tokenizer: vocabulary}
  base:
    kind: pretrain
    data: corpus
    model:
      num_layers: 2
      hidden_size: 64
      num_attention_heads: 4
      max_position_embeddings: 512
    seq_length: 128
    train_iters: 20
    eval_iters: 2
    lr: 3e-3
  base-hf: {kind: export, checkpoint: base}
  chat:
    kind: sft
    model: base-hf
    data: [DATA/gsm8k_train.jsonl]
    columns: {prompt: question, completion: answer}
    max_steps: 5
    max_length: 256
    peft: {method: lora, r: 4}
  merged: {kind: merge, adapter: chat}
  aligned:
    kind: dpo
    model: merged
    data: [DATA/hh_harmless_500.jsonl.gz]
    max_steps: 3
    max_length: 512
  scores:
    kind: evaluate
    models: [base-hf, chat, merged, aligned]
    answer_loss:
      data: [DATA/gsm8k_test.jsonl]
      columns: {prompt: question, completion: answer}
      max_examples: 20
"""


@pytest.mark.slow
def test_real_files_train_fine_tune_and_align(shared_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "real.yaml"
    file.write_text(TEXT.replace("DATA", str(shared_data)))
    done = subprocess.run(
        [*TOOLKIT, "run", str(file)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "runs" / "real"
    info = {
        stage: json.loads((run / stage / "artifact" / "artifact.json").read_text())["info"]
        for stage in ("corpus", "base", "chat", "aligned")
    }
    assert info["corpus"]["counts"]["read"] == 1
    assert info["base"]["validation_loss"] < info["base"]["untrained_validation_loss"]
    assert (run / "report.html").stat().st_size > 10_000
    scores = json.loads((run / "scores" / "artifact" / "scores.json").read_text())
    assert scores
    again = subprocess.run(
        [*TOOLKIT, "run", str(file)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert again.stdout.count("complete already") == 8
