import errno
import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_llama import EOS, PAD, make_model, make_tokenizer

from toolkit.context import StageContext
from toolkit.errors import DataError, StageError, StageInterrupted, ToolkitError
from toolkit.hf import load_model, load_tokenizer
from toolkit.posttrain import checkpoints, sft
from toolkit.posttrain.config import SftConfig
from toolkit.tracking import read_metrics

Contexts = Callable[..., StageContext]
LORA = {"method": "lora", "r": 4, "lora_alpha": 8}
NUMBERS = ["one two three", "four five six", "seven eight nine ten"]
ROWS = [
    {"prompt": f"Name a number. {i}", "completion": NUMBERS[i % 3] + " one" * (i % 5)}
    for i in range(48)
]
"""Rows of many lengths, so that batches are padded and packs are filled."""


def write(path: Path, rows: Iterable[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def config_of(**values: Any) -> SftConfig:
    given = {"kind": "sft", "model": "base", "learning_rate": 1e-2, "max_steps": 6}
    return SftConfig.model_validate(given | values)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def tune(tmp_path: Path, base: Path, stage_context: Contexts) -> Callable[..., Any]:
    """``tune("name", rows, **settings)`` runs a stage and returns its artifact."""

    def run(name: str, rows: Iterable[Any] = ROWS, model: Path = base, **values: Any) -> Any:
        values = {"data": [write(tmp_path / "data.jsonl", rows)], **values}
        return sft.run(config_of(**values), stage_context(name, "sft", base=model))

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_lora_learns_and_publishes_an_adapter(tune: Callable[..., Any], base: Path) -> None:
    artifact = tune("chat", peft=LORA, max_steps=20)
    info = artifact.info
    assert (artifact.type, info["base"], info["steps"]) == ("adapter", "base", 20)
    assert info["held_out"]["rows"] == 2
    assert info["held_out"]["after"]["loss"] < info["held_out"]["before"]["loss"] - 1
    assert info["data"]["read"] == info["data"]["rows"] == info["data"]["ended"] == 48
    assert 0.2 < info["data"]["trained_share"] < 0.8
    assert info["trained_parameters"] < info["parameters"] / 5
    names = {path.name for path in artifact.folder.iterdir()}
    assert {"adapter_config.json", "tokenizer.json", "chat_template.jinja"} <= names
    assert "README.md" not in names
    written = json.loads(artifact.path("adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == str(base)
    assert written["target_modules"] == sorted(written["target_modules"])

    rows = read_metrics(artifact.folder.parent)
    assert rows[0]["step"] == 0
    assert rows[-1]["validation_loss"] == pytest.approx(info["held_out"]["after"]["loss"])
    assert {"loss", "lr", "grad_norm", "mean_token_accuracy"} <= rows[1].keys()
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 21))


def test_the_tuned_model_answers_and_stops(tune: Callable[..., Any]) -> None:
    rows = [{"prompt": "Name a number.", "completion": "one two three"}] * 32
    artifact = tune("chat", rows, peft=LORA, max_steps=60, learning_rate=2e-2)
    model, tokenizer = load_model(artifact.folder), load_tokenizer(artifact.folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Name a number."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    out = model.generate(**prompt, max_new_tokens=30, do_sample=False)
    assert tokenizer.decode(out[0, prompt["input_ids"].shape[1] :]) == f"one two three{EOS}"


def test_full_tuning_publishes_a_model_in_the_precision_of_its_base(
    tune: Callable[..., Any], tmp_path: Path
) -> None:
    half = tmp_path / "half"
    make_model(half)
    load_model(half, dtype="bfloat16").save_pretrained(half)
    artifact = tune("chat", model=half, learning_rate=1e-3)
    assert artifact.type == "model"
    assert {t.dtype for t in weights(artifact.folder).values()} == {torch.bfloat16}
    assert artifact.info["trained_parameters"] == artifact.info["parameters"]
    assert not same(artifact.folder, half)
    load_model(artifact.folder)


def test_the_log_shows_what_is_trained(
    tune: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    tune("chat", peft=LORA, max_steps=1)
    assert "48 of 48 rows" in caplog.text
    assert "% of them trained; 48 of 48 answers with their end token" in caplog.text
    assert f"<|user|>Name a number. 0<|assistant|>[[one two three{EOS}]]" in caplog.text
    assert "2 of 48 rows are held out" in caplog.text


def test_packing_changes_no_loss_and_fills_sequences(tune: Callable[..., Any]) -> None:
    """One step over all rows: packed and unpacked, the same sum over the same tokens."""
    whole = {
        "max_steps": 1,
        "max_length": 64,
        "eval_fraction": 0.0,
        "lr_scheduler_type": "constant",
    }
    packed = tune("packed", packing=True, per_device_train_batch_size=64, **whole)
    plain = tune("plain", per_device_train_batch_size=64, **whole)
    assert 1 < packed.info["packs"] < 24
    assert plain.info["packs"] is None
    losses = [read_metrics(a.folder.parent)[0] for a in (packed, plain)]
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], abs=1e-5)
    assert losses[0]["grad_norm"] == pytest.approx(losses[1]["grad_norm"], abs=1e-4)
    assert losses[0]["num_tokens"] == packed.info["data"]["tokens"]


def test_a_model_that_sees_across_packed_rows_is_refused(
    tune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import masking_utils

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(StageError, match="packed rows see one another"):
        tune("chat", packing=True, max_length=64)


def test_held_out_rows_come_from_their_own_file(tune: Callable[..., Any], tmp_path: Path) -> None:
    other = write(tmp_path / "held.jsonl", ROWS[:7])
    artifact = tune("chat", ROWS[7:], held_out=[other], max_held_out=5, max_steps=2, eval_steps=1)
    assert artifact.info["held_out"]["rows"] == 5
    assert artifact.info["data"]["rows"] == 41
    shown = [r["step"] for r in read_metrics(artifact.folder.parent) if "validation_loss" in r]
    assert shown == [0, 1, 2, 2]


def test_dropped_and_cut_rows_are_counted_and_named(
    tune: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [*ROWS, {"prompt": "x", "completion": ""}, {"prompt": "x" * 99, "completion": "y"}]
    rows.append({"prompt": "x", "completion": "one " * 80})
    artifact = tune("chat", rows, max_length=50, max_steps=1)
    data = artifact.info["data"]
    assert data["read"] == 51
    assert data["rows"] == 49
    assert data["dropped"] == {
        "a turn of the assistant without text": 1,
        "no trained token within max_length": 1,
    }
    assert data["dropped_first"]["no trained token within max_length"] == [
        f"{tmp_path / 'data.jsonl'}:50"
    ]
    assert (data["cut_rows"], data["ended"]) == (1, 48)
    assert "1 rows cut at max_length" in caplog.text


def test_no_trainable_token_is_an_error_and_leaves_nothing(
    tune: Callable[..., Any], tmp_path: Path
) -> None:
    rows = [{"prompt": "x" * 99, "completion": "y"}] * 3
    with pytest.raises(DataError, match="no row of the train rows is left: of 3") as caught:
        tune("chat", rows, max_length=20)
    assert "3 x no trained token within max_length" in str(caught.value)
    assert not (tmp_path / "run" / "chat" / "artifact").exists()


@pytest.fixture
def odd(tmp_path: Path) -> Callable[..., Path]:
    """A base with another chat template."""

    def make(template: str | None, **options: Any) -> Path:
        tokenizer = make_tokenizer(**options)
        tokenizer.chat_template = template
        return make_model(tmp_path / "odd", tokenizer)

    return make


def test_an_end_token_that_is_never_trained_is_an_error(
    tune: Callable[..., Any], odd: Callable[..., Path]
) -> None:
    outside = (
        "{%- for m in messages -%}{%- if m['role'] == 'assistant' -%}"
        "{%- generation -%}{{ m['content'] }}{%- endgeneration -%}{{ eos_token }}"
        "{%- else -%}{{ '<|user|>' ~ m['content'] ~ '<|assistant|>' }}{%- endif -%}{%- endfor -%}"
    )
    with pytest.raises(DataError, match=r"none of the 48 answers .* never learn to stop"):
        tune("chat", model=odd(outside))


def test_a_template_without_marks_is_refused_with_the_ways_out(
    tune: Callable[..., Any], odd: Callable[..., Path]
) -> None:
    bare = "{% for m in messages %}{{ m['role'] ~ ': ' ~ m['content'] ~ eos_token }}{% endfor %}"
    with pytest.raises(ToolkitError, match="doesn't mark what the assistant writes") as caught:
        tune("chat", model=odd(bare))
    assert "chatml or plain" in str(caught.value)


def test_a_tokenizer_without_a_template_is_refused_with_the_ways_out(
    tune: Callable[..., Any], odd: Callable[..., Path]
) -> None:
    with pytest.raises(ToolkitError, match="no chat template") as caught:
        tune("chat", model=odd(None))
    assert "plain" in str(caught.value)


def test_qwens_template_is_trained_by_its_marked_twin_and_kept(
    tune: Callable[..., Any], odd: Callable[..., Path]
) -> None:
    from trl.chat_template_utils import qwen2_5_chat_template

    artifact = tune("chat", model=odd(qwen2_5_chat_template, eos_token="<|im_end|>"), peft=LORA)
    assert artifact.info["data"]["ended"] == 48
    assert artifact.info["data"]["example"].endswith("[[\none two three<|im_end|>\n]]")
    assert load_tokenizer(artifact.folder).chat_template == qwen2_5_chat_template


@pytest.mark.parametrize(
    ("name", "shown", "end"),
    [
        (
            "chatml",
            "<|im_start|>user\nName a number. 0<|im_end|>\n"
            "<|im_start|>assistant\n[[one two three<|im_end|>]]\n",
            "<|im_end|>",
        ),
        (
            "plain",
            f"### User:\nName a number. 0\n\n### Assistant:\n[[one two three{EOS}]]\n\n",
            EOS,
        ),
        ("none", f"Name a number. 0[[one two three{EOS}]]", EOS),
    ],
)
def test_our_templates(
    tune: Callable[..., Any],
    odd: Callable[..., Path],
    name: str,
    shown: str,
    end: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    artifact = tune("chat", model=odd(None), chat_template=name, peft=LORA, max_steps=1)
    assert artifact.info["data"]["example"] == shown
    assert "generation prompt differs" not in caplog.text
    tokenizer = load_tokenizer(artifact.folder)
    assert bool(tokenizer.chat_template) == (name != "none")
    stops = load_model(artifact.folder).generation_config.eos_token_id
    assert tokenizer.convert_tokens_to_ids(end) in stops


QUESTION = "{%- for m in messages -%}{%- if m.role == 'user' -%}{{ 'Q: ' ~ m.content ~ '\\nA:' }}"
ANSWER = (
    "{%- else -%}{% generation %}{{ m.content ~ eos_token }}{% endgeneration %}"
    "{%- endif -%}{%- endfor -%}"
)


def test_a_template_file_is_used_and_saved(
    tune: Callable[..., Any], odd: Callable[..., Path], tmp_path: Path
) -> None:
    path = tmp_path / "mine.jinja"
    path.write_text(QUESTION + ANSWER)
    artifact = tune("chat", model=odd(None), chat_template_path=str(path), peft=LORA, max_steps=1)
    assert artifact.info["data"]["example"] == f"Q: Name a number. 0\nA:[[one two three{EOS}]]"
    assert load_tokenizer(artifact.folder).chat_template == path.read_text()


def test_a_prompt_that_generation_would_have_otherwise_is_warned_of(
    tune: Callable[..., Any],
    odd: Callable[..., Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A blank at the prompt's end becomes one token with the answer's first word."""
    path = tmp_path / "mine.jinja"
    path.write_text(QUESTION.replace("A:", "A: ") + ANSWER)
    artifact = tune("chat", model=odd(None), chat_template_path=str(path), peft=LORA, max_steps=1)
    assert artifact.info["data"]["example"] == f"Q: Name a number. 0\nA: one[[ two three{EOS}]]"
    assert "generation prompt differs" in caplog.text


@pytest.mark.parametrize("pad", [None, EOS])
def test_eos_is_trained_whatever_pads(
    tune: Callable[..., Any], odd: Callable[..., Path], pad: str | None
) -> None:
    """pad == eos is the trap in which EOS is masked, and the model never learns to stop."""
    model = odd(make_tokenizer().chat_template, pad_token=pad)
    rows = [{"prompt": "Name a number.", "completion": "one two three"}] * 32
    artifact = tune("chat", rows, model=model, max_steps=20)
    assert artifact.info["data"]["ended"] == 32
    tuned = load_model(artifact.folder)
    ids = make_tokenizer()("<|user|>Name a number.<|assistant|>one two three")
    logits = tuned(input_ids=torch.tensor([ids["input_ids"]])).logits[0, -1]
    assert int(logits.argmax()) == 0  # EOS
    if pad is None:
        assert PAD in make_tokenizer().get_vocab()
        assert load_tokenizer(artifact.folder).pad_token is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 512}, "max_length 512 is more than the model's context of 256"),
        ({"peft": LORA | {"target_modules": ["query"]}}, "linear layers are: down_proj"),
        ({"chat_template": "none", "data": ["many"]}, "more than a prompt and an answer"),
    ],
)
def test_settings_that_do_not_fit_the_model(
    tune: Callable[..., Any], tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    turns = [{"role": r, "content": "x"} for r in ("user", "assistant", "user", "assistant")]
    many = write(tmp_path / "many.jsonl", [{"messages": turns}])
    values = values | ({"data": [many]} if "data" in values else {})
    with pytest.raises(ToolkitError) as caught:
        tune("chat", **values)
    assert message in str(caught.value)


def test_a_tokenizer_of_another_model_is_refused(tune: Callable[..., Any], tmp_path: Path) -> None:
    small = make_model(tmp_path / "small", make_tokenizer(), vocab_size=300)
    with pytest.raises(ToolkitError, match="the model's embedding 300 rows"):
        tune("chat", model=small)


def test_a_loss_that_is_not_finite_ends_the_stage(tune: Callable[..., Any], tmp_path: Path) -> None:
    broken = make_model(tmp_path / "broken")
    model = load_model(broken)
    model.lm_head.weight.data[0] = float("nan")
    model.save_pretrained(broken)
    with pytest.raises(StageError, match="the loss is nan at step 1"):
        tune("chat", model=broken, eval_fraction=0.0)


@pytest.mark.parametrize("limit", [100_000, 250_000], ids=["weights", "optimizer"])
def test_a_full_disk_is_told_and_leaves_nothing_half_made(
    tune: Callable[..., Any], tmp_path: Path, limit: int
) -> None:
    """A limit on the size of files fails in the same places."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(OSError, match="No space left on device") as caught:
            tune("chat", max_steps=1, learning_rate=1e-3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.ENOSPC
    folder = tmp_path / "run" / "chat"
    assert not (folder / "artifact").exists()
    assert checkpoints.latest(folder / "work") is None
    assert tune("chat", max_steps=1, learning_rate=1e-3).info["steps"] == 1


def test_mixed_precision_and_recomputation_as_on_a_gpu(tune: Callable[..., Any]) -> None:
    values = {"precision": "bf16", "gradient_checkpointing": True, "max_steps": 20}
    artifact = tune("chat", peft=LORA, **values)
    held = artifact.info["held_out"]
    assert held["after"]["loss"] < held["before"]["loss"] - 1
    assert {tensor.dtype for tensor in weights(artifact.folder).values()} == {torch.float32}
    exact = tune("exact", peft=LORA, max_steps=20).info["held_out"]
    assert held["after"]["loss"] == pytest.approx(exact["after"]["loss"], abs=0.3)
    assert held["before"]["loss"] != exact["before"]["loss"]


RESUMED = {"save_steps": 2, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
KINDS = {"full": {"learning_rate": 1e-3}, "lora": {"peft": LORA | {"lora_dropout": 0.2}}}


class CrashError(Exception):
    """A crash in the middle of the training."""


@pytest.mark.parametrize("kind", KINDS)
def test_resuming_gives_the_same_weights_bit_by_bit(
    tmp_path: Path,
    base: Path,
    stage_context: Contexts,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Uninterrupted; stopped by SIGTERM and crashed; the epochs end in between."""
    caplog.set_level(logging.INFO)
    data = write(tmp_path / "data.jsonl", ROWS)
    config = config_of(data=[data], **RESUMED, **KINDS[kind], max_steps=14)
    whole = sft.run(config, stage_context("whole", "sft", base=base))

    def attempt(at: int | None, action: Callable[[StageContext], None] | None = None) -> Any:
        context = stage_context("cut", "sft", base=base)
        context.stop.install()
        log = context.tracker.log

        def hooked(step: int, values: Any) -> None:
            log(step, values)
            if step == at and action:
                action(context)

        context.tracker.log = hooked  # type: ignore[method-assign]
        return sft.run(config, context)

    def crash(context: StageContext) -> None:
        raise CrashError

    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        with pytest.raises(StageInterrupted, match="SIGTERM at step 4, which is saved") as caught:
            attempt(3, lambda context: os.kill(os.getpid(), signal.SIGTERM))
        assert caught.value.saved
        work = tmp_path / "run" / "cut" / "work"
        assert checkpoints.latest(work) == work / "checkpoint-4"
        with pytest.raises(CrashError):
            attempt(9, crash)
        assert checkpoints.latest(work) == work / "checkpoint-8"
        (work / "checkpoint-8" / "trainer_state.json").write_text("{")  # a save that was cut off
        resumed = attempt(None)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert "checkpoint-8 is not whole" in caplog.text
    assert "going on from step 6" in caplog.text
    assert same(resumed.folder, whole.folder)
    assert resumed.info["held_out"] == whole.info["held_out"]
    losses = [
        [
            (row["step"], row["loss"])
            for row in read_metrics(tmp_path / "run" / run)
            if "loss" in row
        ]
        for run in ("whole", "cut")
    ]
    assert losses[0] == losses[1]
    assert len(list((tmp_path / "run" / "cut" / "work").glob("checkpoint-*"))) == 2


SCRIPT = """
import os
from pathlib import Path
from toolkit.context import Input, StageContext
from toolkit.posttrain import checkpoints, sft
from toolkit.posttrain.config import SftConfig
folder, base = Path({folder!r}), Path({base!r})
folder.mkdir(parents=True, exist_ok=True)
context = StageContext(
    folder.name, "sft", folder, "test", {{"base": Input("base", base, "model", "test")}},
    rank=int(os.environ.get("RANK", 0)), world_size=int(os.environ.get("WORLD_SIZE", 1)),
    local_rank=int(os.environ.get("LOCAL_RANK", 0)),
)
config = SftConfig.model_validate_json({config!r})
"""
KILLED = """
def killed(checkpoint):
    if checkpoint.name == "checkpoint-4":  # all files are there, but for the seal
        os.kill(os.getpid(), 9)
    seal(checkpoint)
seal, checkpoints.seal = checkpoints.seal, killed
sft.run(config, context)
"""


def script(folder: Path, base: Path, config: SftConfig) -> str:
    names = {"folder": str(folder), "base": str(base), "config": config.model_dump_json()}
    return SCRIPT.format(**names)


def test_killed_while_saving_and_run_again(
    tmp_path: Path, base: Path, stage_context: Contexts
) -> None:
    data = write(tmp_path / "data.jsonl", ROWS)
    config = config_of(data=[data], **RESUMED, peft=LORA)
    folder = tmp_path / "run" / "cut"
    code = script(folder, base, config) + KILLED
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (folder / "work" / "checkpoint-4" / "optimizer.pt").exists()
    assert checkpoints.latest(folder / "work") == folder / "work" / "checkpoint-2"
    resumed = sft.run(config, stage_context("cut", "sft", base=base))
    whole = sft.run(config, stage_context("whole", "sft", base=base))
    assert same(resumed.folder, whole.folder)


def test_two_ranks_train_as_one(
    tmp_path: Path, base: Path, stage_context: Contexts, free_port: int
) -> None:
    data = write(tmp_path / "data.jsonl", ROWS)
    steady = {"learning_rate": 1e-3, "lr_scheduler_type": "constant", "save_steps": 2}
    steady |= {"held_out": [write(tmp_path / "held.jsonl", ROWS[:9])]}  # evaluated in between
    config = config_of(data=[data], per_device_train_batch_size=4, **steady)
    code = script(tmp_path / "run" / "two", base, config) + "sft.run(config, context)"
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**shared, "MASTER_PORT": str(free_port), "RANK": str(r), "LOCAL_RANK": str(r)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(2)
    ]
    errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], errors
    one = config_of(data=[data], per_device_train_batch_size=8, **steady)
    alone = sft.run(one, stage_context("one", "sft", base=base))
    curves = [
        [row["loss"] for row in read_metrics(tmp_path / "run" / run) if "loss" in row]
        for run in ("one", "two")
    ]
    assert len(curves[0]) == 6
    assert curves[1] == pytest.approx(curves[0], abs=1e-4)
    two, single = weights(tmp_path / "run" / "two" / "artifact"), weights(alone.folder)
    for name in single:
        torch.testing.assert_close(two[name], single[name], atol=2e-4, rtol=0)
