"""A run folder as the toolkit writes it, without the hour that a real one takes.

``python tests/report/fake_run.py DIR`` writes one to look at.
"""

import json
import math
import random
import sys
from pathlib import Path

import yaml

from toolkit.evaluate.scores import (
    Change,
    Row,
    ScoredModel,
    Scores,
    Value,
    Written,
    write_generations,
)

HEX = "3f9a1c07b2d84e65a0c1f7e29b3d5846"
SAMPLES = {name: f"sample:python-{name}" for name in ("docs", "questions", "preferences")}
STAGES: dict[str, dict] = {
    "vocabulary": {
        "kind": "train-tokenizer",
        "sources": [SAMPLES["docs"]],
        "vocab_size": 4096,
    },
    "corpus": {"kind": "tokenize", "sources": [SAMPLES["docs"]], "tokenizer": "vocabulary"},
    "base": {
        "kind": "pretrain",
        "data": "corpus",
        "train_iters": 200,
        "micro_batch_size": 4,
        "global_batch_size": 16,
        "seq_length": 128,
        "parallel": {"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2},
    },
    "base-hf": {"kind": "export", "checkpoint": "base"},
    "chat": {
        "kind": "sft",
        "model": "base-hf",
        "data": [SAMPLES["questions"]],
        "peft": {"method": "lora", "r": 8},
    },
    "preferred": {"kind": "dpo", "model": "chat", "data": [SAMPLES["preferences"]]},
    "scores": {
        "kind": "evaluate",
        "models": ["base-hf", "chat", "preferred"],
        "perplexity": {"sources": [SAMPLES["docs"] + "/held-out"]},
    },
}
NEEDS = {
    "vocabulary": [],
    "corpus": ["vocabulary"],
    "base": ["corpus"],
    "base-hf": ["base"],
    "chat": ["base-hf"],
    "preferred": ["chat"],
    "scores": ["base-hf", "chat", "preferred"],
}
TYPES = {
    "vocabulary": "tokenizer",
    "corpus": "dataset",
    "base": "checkpoint",
    "base-hf": "model",
    "chat": "adapter",
    "preferred": "adapter",
    "scores": "scores",
}
SECONDS = (6.4, 4.1, 121.0, 8.8, 41.5, 52.3, 33.0)
VERSIONS = {
    "python": "3.11.7",
    "megatron-toolkit": "0.1.0",
    "torch": "2.13.0",
    "megatron-core": "0.16.1",
    "transformers": "5.23.0",
    "trl": "1.16.0",
    "peft": "0.21.2",
}
INFO: dict[str, dict] = {
    "vocabulary": {
        "vocab_size": 4096,
        "eod_token": "<|endoftext|>",
        "eod_id": 0,
        "sha256": HEX * 2,
        "documents": 9_412,
        "text_bytes": 6_812_223,
        "bytes_per_token": 3.412,
        "sources": [SAMPLES["docs"]],
    },
    "corpus": {
        "prefixes": ["text_document"],
        "dtype": "uint16",
        "vocab_size": 4096,
        "eod_id": 0,
        "bytes_per_token": 3.412,
        "document_lengths": {
            "median": 133,
            "mean": 212.8,
            "p99": 1904,
            "max": 9410,
            "histogram": [0, 0, 0, 12, 310, 1204, 2411, 2904, 1530, 702, 231, 60, 12, 3, 1],
        },
        "backend": "gigatoken",
        "backend_reason": "its tokens equal those of tokenizers on the first 512 documents",
        "counts": {
            "read": 9_412,
            "written": 9_380,
            "empty": 21,
            "quarantined": 11,
            "tokens": 1_996_537,
            "text_bytes": 6_812_223,
        },
        "per_source": [
            {
                "name": SAMPLES["docs"],
                "documents": 9_100,
                "tokens": 1_900_110,
                "text_bytes": 6_400_000,
            },
            {"name": "notes/**/*.txt", "documents": 280, "tokens": 96_427, "text_bytes": 412_223},
        ],
        "sources": [
            {"name": SAMPLES["docs"], "size": 0, "mtime_ns": 0},
            {"name": "notes/a/b.txt", "size": 412_223, "mtime_ns": 1_772_000_000_000_000_000},
        ],
        "shards": [{"key": "00000", "documents": 9_380, "tokens": 1_996_537, "bin_xxh3": {}}],
    },
    "base": {
        "iteration": 200,
        "parameters": 3_412_992,
        "consumed_samples": 3200,
        "untrained_validation_loss": 8.334,
        "validation_loss": 4.421,
        "layout": {
            "world_size": 8,
            "tensor_model_parallel_size": 2,
            "pipeline_model_parallel_size": 2,
            "virtual_pipeline_model_parallel_size": None,
            "data_parallel_size": 2,
            "num_microbatches": 2,
        },
    },
    "base-hf": {
        "architecture": "LlamaForCausalLM",
        "parameters": 3_412_992,
        "dtype": "float32",
        "max_logit_difference": 3.1e-6,
    },
    "chat": {"base": "base-hf", "steps": 60, "trained_parameters": 98_304, "trained_share": 0.41},
    "preferred": {"base": "chat", "steps": 40, "trained_parameters": 98_304},
}
MODELS = ("untrained", "base-hf", "chat", "preferred")


def write_run(folder: Path, *, statuses: dict[str, str] | None = None) -> Path:
    """Write a run folder; ``statuses`` names stages that are not ``complete``."""
    folder.mkdir(parents=True)
    pipeline = {"name": "mini", "seed": 1234, "stages": STAGES}
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(pipeline, sort_keys=False))
    clock = 1_772_000_000.0
    for (name, config), seconds in zip(STAGES.items(), SECONDS, strict=True):
        status = (statuses or {}).get(name, "complete")
        if status != "pending":
            write_stage(folder / name, config, status, clock, seconds)
            clock += seconds
    return folder


def write_stage(folder: Path, config: dict, status: str, clock: float, seconds: float) -> None:
    (folder / "logs").mkdir(parents=True)
    name = folder.name
    inputs = {
        need: {"folder": f"../{need}/artifact", "type": TYPES[need], "fingerprint": HEX * 2}
        for need in NEEDS[name]
    }
    stage = {
        "stage": name,
        "kind": config["kind"],
        "fingerprint": HEX * 2,
        "seed": 1234,
        "config": config,
        "inputs": inputs,
    }
    (folder / "stage.yaml").write_text(yaml.safe_dump(stage, sort_keys=False))
    (folder / "logs" / "worker.log").write_text("starting\nloading\nTraceback: it broke <here>\n")
    write_json(folder / "state.json", state(status, clock, seconds))
    rows = METRICS.get(name, list)()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    if status == "complete":
        write_artifact(folder / "artifact", name, config["kind"])


def state(status: str, clock: float, seconds: float) -> dict:
    attempt = {"started": clock, "ended": clock + seconds, "status": status, "world_size": 2}
    error = None
    if status == "failed":
        error = {
            "message": "loss is not finite at iteration 117",
            "where": "base/logs/worker.log",
            "hint": "lower lr, or set on_nan: skip",
        }
    return {
        "status": status,
        "fingerprint": HEX * 2,
        "attempts": [attempt],
        "versions": VERSIONS,
        "seconds": seconds,
        "error": error,
    }


def write_artifact(folder: Path, name: str, kind: str) -> None:
    folder.mkdir()
    parents = [
        {
            "reference": need,
            "type": TYPES[need],
            "fingerprint": HEX * 2,
            "folder": f"../../{need}/artifact",
        }
        for need in NEEDS[name]
    ]
    if name == "scores":
        make_scores().write(folder)
        write_generations(folder, make_generations())
    manifest = {
        "type": TYPES[name],
        "fingerprint": HEX * 2,
        "stage": name,
        "kind": kind,
        "created": "2026-02-25T06:16:40+00:00",
        "parents": parents,
        "files": [{"path": "model.safetensors", "size": 13_651_968, "sha256": HEX * 2}],
        "versions": VERSIONS,
        "info": INFO.get(name, {}),
    }
    write_json(folder / "artifact.json", manifest)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


def pretrain_rows() -> list[dict]:
    noise = random.Random(7)
    rows = []
    for step in range(1, 201):
        loss = 4.2 + 4.1 * math.exp(-step / 35) + noise.gauss(0, 0.05)
        rate = 1e-3 * (step / 10 if step < 10 else 0.55 + 0.45 * math.cos(step / 200 * math.pi))
        row: dict = {
            "step": step,
            "time": 1_772_000_000 + step * 0.6,
            "loss": loss + (1.4 if step == 88 else 0),
            "lr": rate,
            "grad_norm": 0.4 + 2.5 * math.exp(-step / 20) + abs(noise.gauss(0, 0.08)),
            "tokens_per_second": 3400 + noise.gauss(0, 140) - (900 if step % 50 == 0 else 0),
            "seconds_per_step": 0.6 + noise.gauss(0, 0.02),
            "tflops_per_second": 0.071 + noise.gauss(0, 0.002),
            "memory_gib": 0.81,
        }
        if step == 140:
            row["grad_norm"] = None
        if step % 25 == 0:
            held_out = 4.35 + 4.0 * math.exp(-step / 36)
            row |= {"validation_loss": held_out, "validation_perplexity": math.exp(held_out)}
        rows.append(row)
    return rows


def sft_rows() -> list[dict]:
    rows = []
    for step in range(2, 61, 2):
        rows.append(
            {
                "step": step,
                "loss": 3.1 * math.exp(-step / 30) + 1.9,
                "grad_norm": 1.0 + step % 7 * 0.05,
                "learning_rate": 2e-4 * (1 - step / 60),
                "mean_token_accuracy": 0.3 + step / 200,
                "num_tokens": step * 800,
                "epoch": step / 60,
            }
        )
        if step % 20 == 0:
            rows.append({"step": step, "eval_loss": 2.9 - step / 60, "eval_runtime": 1.2})
    return rows


def dpo_rows() -> list[dict]:
    rows = []
    for step in range(1, 41):
        gain = 1 - math.exp(-step / 15)
        rows.append(
            {
                "step": step,
                "loss": 0.693 - 0.35 * gain,
                "rewards/accuracies": 0.5 + 0.35 * gain,
                "rewards/margins": 1.1 * gain,
                "rewards/chosen": 0.4 * gain,
                "rewards/rejected": -0.7 * gain,
                "logps/chosen": -41.0 - gain,
                "logps/rejected": -44.0 - 6 * gain,
                "learning_rate": 5e-5 * (1 - step / 40),
                "grad_norm": 0.9,
            }
        )
        if step % 10 == 0:
            rows.append(
                {
                    "step": step,
                    "eval_loss": 0.70 - 0.2 * gain,
                    "eval_rewards/accuracies": 0.5 + 0.27 * gain,
                }
            )
    return rows


METRICS = {"base": pretrain_rows, "chat": sft_rows, "preferred": dpo_rows}


def make_scores() -> Scores:
    def row(measure: str, source: str, figure: str, label: str, found: list, **more) -> Row:
        values: list[Value | None] = []
        for index, (value, error) in enumerate(found):
            before = found[index - 1][0] if index else None
            change = (
                Change(MODELS[index - 1], value - before, error * 0.7)
                if None not in (value, before)
                else None
            )
            n = more.get("n", 41_873)
            values.append(None if value is None else Value(value, error, n, change))
        settings = {k: v for k, v in more.items() if k != "n"}
        return Row(measure, source, figure, label, tuple(values), **settings)

    rows = (
        row(
            *("perplexity", "sample:python-docs/held-out", "perplexity", "Perplexity"),
            [(4163.2, 31.0), (83.21, 2.4), (88.05, 2.6), (90.9, 2.7)],
            better="lower",
            headline=True,
            unit="tokens",
        ),
        row(
            *("perplexity", "sample:python-docs/held-out", "times_below_untrained"),
            "Times below the untrained model",
            [(None, None), (50.03, 1.0), (47.28, 1.0), (45.8, 1.0)],
            better="higher",
            headline=True,
        ),
        row(
            *("perplexity", "sample:python-docs/held-out", "bits_per_byte", "Bits per byte"),
            [(3.52, 0.02), (1.87, 0.01), (1.89, 0.01), (1.91, 0.01)],
            better="lower",
            unit="bytes",
            n=142_230,
        ),
        row(
            *("answer_loss", "sample:python-questions/held-out", "answer_loss", "Answer loss"),
            [(8.33, 0.01), (4.71, 0.06), (3.02, 0.05), (3.11, 0.05)],
            better="lower",
            headline=True,
            unit="tokens",
            n=9_920,
        ),
        row(
            *("preferences", "sample:python-preferences/held-out", "accuracy"),
            "Preference accuracy",
            [(0.506, 0.025), (0.612, 0.024), (0.655, 0.023), (0.781, 0.02)],
            better="higher",
            headline=True,
            percent=True,
            unit="pairs",
            n=402,
        ),
    )
    return Scores(
        models=tuple(ScoredModel(m, "model", HEX, 3_412_992) for m in MODELS),
        rows=rows,
        notes={"perplexity": "The exponential of the mean loss per token."},
        settings={"seq_length": 128, "stride": 64, "dtype": "float32"},
    )


def make_generations() -> list[Written]:
    texts = {
        "base-hf": "The list of the file is a list of the file, and the file is a list of the",
        "chat": "Return a new list containing the items of the iterable.",
        "preferred": "Return a list of the elements in iterable, in order.\n\n    >>> list('ab')",
    }
    prompts = ("What does the function list() do?", "def read_records(path):\n    ")
    return [
        Written(prompt, model, text, 18, "length" if model == "base-hf" else "stop", True)
        for prompt in prompts
        for model, text in texts.items()
    ]


if __name__ == "__main__":
    print(write_run(Path(sys.argv[1])))
