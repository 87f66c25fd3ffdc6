"""The ``evaluate`` stage: models one after another, each measure on each source; then the table.

Every outcome (one measure of one model on one source) is kept as soon as it is there, so a run
that was cut off goes on with the next one, and models that are finished are not loaded again.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from toolkit.artifacts import Artifact, read_artifact, write_json
from toolkit.context import StageContext
from toolkit.errors import ToolkitError
from toolkit.evaluate import answers, harness, perplexity
from toolkit.evaluate.assemble import assemble
from toolkit.evaluate.config import UNTRAINED, EvaluateConfig
from toolkit.evaluate.figures import Scored
from toolkit.evaluate.generate import (
    Sampling,
    chat_template,
    complete,
    context_length,
    encode_prompt,
)
from toolkit.evaluate.scores import ScoredModel, Written, write_generations
from toolkit.evaluate.scoring import Windows
from toolkit.evaluate.subject import Subject
from toolkit.hf import base_folder, load_model, load_tokenizer

logger = logging.getLogger(__name__)

LONGEST = 4096
"""The default window where all models could take more."""
Measure = Callable[[Subject, Any, str], list[Scored]]
MEASURES: dict[str, tuple[Measure, str]] = {
    "perplexity": (perplexity.perplexity, perplexity.NOTE),
    "answer_loss": (answers.answer_loss, answers.ANSWER_NOTE),
    "preferences": (answers.preferences, answers.PREFERENCE_NOTE),
    "lm_eval": (harness.harness, harness.NOTE),
}
"""What runs each measure, and how it is computed, for the reader."""
WRITING = "generations"


@dataclass(frozen=True)
class Contestant:
    """One column before its model is loaded."""

    name: str
    folder: Path
    fingerprint: str
    type: str
    untrained: bool = False


def run(config: EvaluateConfig, context: StageContext) -> Artifact:
    """Score the models and publish the table.

    Raises:
        ToolkitError: a model, or data to score, that can't be used.
    """
    evaluation = Evaluation(config, context)
    evaluation.work()
    return evaluation.publish()


class Evaluation:
    """The models, the work to do on each, and what is done."""

    def __init__(self, config: EvaluateConfig, context: StageContext) -> None:
        self.config, self.context = config, context
        self.contestants = list(contestants(config, context))
        self.units = list(units(config))
        self.windows = windows(config, self.contestants)
        self.template = next(filter(None, map(_template, self.contestants)), None)
        self._done = 0
        self._now = {"model": "", "measure": ""}

    def work(self) -> None:
        """Measure what is not measured yet, one model in memory at a time."""
        for contestant in self.contestants:
            todo = [unit for unit in self._units(contestant) if not self._saved(contestant, *unit)]
            self._done += len(self._units(contestant)) - len(todo)
            if todo:
                self._measure(contestant, todo)

    def publish(self) -> Artifact:
        """The artifact with the table and the generations."""
        built = self.context.building()
        scores = assemble(
            [self._column(c) for c in self.contestants],
            self._measured(),
            {name: note for name, (_, note) in MEASURES.items()},
            {**asdict(self.windows), "dtype": self._dtype(), "seed": self.context.seed},
        )
        scores.write(built)
        write_generations(built, self._written())
        info = {"models": [c.name for c in self.contestants], "scores": scores.headlines()}
        return self.context.publish(built, "scores", info=info)

    def _measure(self, contestant: Contestant, todo: Sequence[tuple[str, str]]) -> None:
        logger.info("loading %s from %s", contestant.name, contestant.folder)
        subject = self._load(contestant)
        parameters = sum(p.numel() for p in subject.model.parameters())
        for measure, source in todo:
            logger.info("%s: %s %s", contestant.name, measure, source)
            self._now = {"model": contestant.name, "measure": measure}
            self._show(0.0)
            outcome = self._outcome(subject, measure, source)
            path = self._path(contestant, measure, source)
            record = {"key": self._key(contestant, measure, source), "parameters": parameters}
            write_json(path, {**record, **outcome})
            self._done += 1
        self._show(0.0)
        del subject
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _outcome(self, subject: Subject, measure: str, source: str) -> dict[str, Any]:
        if measure == WRITING:
            return {"written": [asdict(w) for w in self._write(subject)]}
        found = MEASURES[measure][0](subject, getattr(self.config, measure), source)
        return {"scored": [scored.to_json() for scored in found]}

    def _write(self, subject: Subject) -> Iterator[Written]:
        settings = self.config.generations
        assert settings is not None, "only asked for where prompts are given"
        seed = self.context.seed if settings.seed is None else settings.seed
        sampling = Sampling(settings.max_new_tokens, settings.temperature, settings.top_p, seed)
        template = chat_template(subject.tokenizer) if settings.chat else None
        for index, prompt in enumerate(settings.prompts):
            ids = encode_prompt(subject.tokenizer, prompt, template)
            out = complete(subject.model, subject.tokenizer, ids, sampling)
            subject.tick((index + 1) / len(settings.prompts))
            chat = template is not None
            yield Written(prompt, subject.name, out.text, out.tokens, out.finish, chat)

    def _load(self, contestant: Contestant) -> Subject:
        context = self.context
        tokenizer = load_tokenizer(contestant.folder)
        own = chat_template(tokenizer)
        if own is None and self.template and (self.config.answer_loss or self.config.preferences):
            logger.info("%s has no chat template; another model's is used", contestant.name)
        return Subject(
            name=contestant.name,
            model=self._model(contestant),
            tokenizer=tokenizer,
            windows=self.windows,
            seed=context.seed,
            locate=context.path,
            tick=self._show,
            chat_template=own or self.template,
        )

    def _model(self, contestant: Contestant) -> PreTrainedModel:
        device = "cpu" if self.context.device == "cpu" else f"cuda:{self.context.local_rank}"
        if not contestant.untrained:
            return load_model(contestant.folder, device=device, dtype=self._dtype())
        torch.manual_seed(self.context.seed)
        model = AutoModelForCausalLM.from_config(_config(contestant.folder))
        return model.to(device=device, dtype=getattr(torch, self._dtype())).eval()

    def _dtype(self) -> str:
        if self.config.dtype != "auto":
            return self.config.dtype
        return "float32" if self.context.device == "cpu" else "bfloat16"

    def _units(self, contestant: Contestant) -> list[tuple[str, str]]:
        return [u for u in self.units if not (contestant.untrained and u[0] == WRITING)]

    def _key(self, contestant: Contestant, measure: str, source: str) -> str:
        parts = [self.context.fingerprint, contestant.fingerprint, str(contestant.untrained)]
        parts += [
            measure,
            source,
            self._dtype(),
            str(self.windows.seq_length),
            str(self.windows.stride),
        ]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _path(self, contestant: Contestant, measure: str, source: str) -> Path:
        key = self._key(contestant, measure, source)
        return self.context.work / f"{measure}-{key[:16]}.json"

    def _saved(self, contestant: Contestant, measure: str, source: str) -> Mapping[str, Any]:
        path = self._path(contestant, measure, source)
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return found if found.get("key") == self._key(contestant, measure, source) else {}

    def _measured(self) -> dict[tuple[str, str], list[Scored]]:
        found: dict[tuple[str, str], list[Scored]] = {}
        for contestant in self.contestants:
            for measure, source in self._units(contestant):
                raw = self._saved(contestant, measure, source).get("scored", ())
                rows = found.setdefault((measure, contestant.name), [])
                rows += [Scored.from_json(row) for row in raw]
        return found

    def _written(self) -> Iterator[Written]:
        for contestant in self.contestants:
            for unit in self._units(contestant):
                for row in self._saved(contestant, *unit).get("written", ()):
                    yield Written(**row)

    def _column(self, contestant: Contestant) -> ScoredModel:
        parameters = self._saved(contestant, *self._units(contestant)[0])["parameters"]
        return ScoredModel(contestant.name, contestant.type, contestant.fingerprint, parameters)

    def _show(self, share: float) -> None:
        """Progress, with the share of the present unit that is done."""
        total = sum(len(self._units(c)) for c in self.contestants)
        self.context.progress(round(self._done + share, 1), total, unit="measures", **self._now)


def contestants(config: EvaluateConfig, context: StageContext) -> Iterator[Contestant]:
    """The columns, in order: the untrained baseline first, where it is asked for.

    Raises:
        ToolkitError: a model is not there, or no model.
    """
    found = [context.artifact(reference) for reference in config.models]
    names = column_names(config.models)
    if config.untrained_baseline:
        first = found[0]
        yield Contestant(UNTRAINED, first.folder, first.fingerprint, "baseline", untrained=True)
    for name, artifact in zip(names, found, strict=True):
        yield Contestant(name, artifact.folder, artifact.fingerprint, artifact.type)


def column_names(references: Sequence[str]) -> list[str]:
    """Stage names as they are; of paths as many last parts as tell them apart.

    The last part ``artifact`` says nothing: ``runs/a/chat/artifact`` is ``chat``.
    """
    parts = [[p for p in r.split("/") if p] for r in references]
    parts = [p[:-1] if len(p) > 1 and p[-1] == "artifact" else p for p in parts]
    names = []
    for mine in parts:
        for count in range(1, len(mine) + 1):
            tail = mine[-count:]
            if sum(other[-count:] == tail for other in parts) == 1:
                break
        names.append("/".join(tail))
    return names


def units(config: EvaluateConfig) -> Iterator[tuple[str, str]]:
    """The work on each model: (measure, source), each once."""
    sources = {
        "perplexity": config.perplexity.sources if config.perplexity else (),
        "answer_loss": config.answer_loss.data if config.answer_loss else (),
        "preferences": config.preferences.data if config.preferences else (),
        "lm_eval": config.lm_eval.tasks if config.lm_eval else (),
        WRITING: ("",) if config.generations else (),
    }
    for measure, named in sources.items():
        yield from ((measure, source) for source in dict.fromkeys(named))


def windows(config: EvaluateConfig, models: Sequence[Contestant]) -> Windows:
    """The window that all models are given.

    Raises:
        ToolkitError: seq_length or stride is more than a model takes.
    """
    limits = {c.name: context_length(_config(c.folder)) or LONGEST for c in models}
    smallest = min(limits, key=lambda name: limits[name])
    length = config.seq_length or min(limits[smallest], LONGEST)
    if length > limits[smallest]:
        raise ToolkitError(
            f"seq_length {length:,} is more than the {limits[smallest]:,} positions of {smallest}",
            hint=f"set seq_length to {limits[smallest]} at most, or leave it out",
        )
    stride = config.stride or max(1, length // 2)
    if stride > length:
        raise ToolkitError(f"stride {stride:,} is more than seq_length {length:,}")
    return Windows(length, stride, config.batch_size)


def _config(folder: Path) -> Any:
    """The Hugging Face config of a model, or of the base under an adapter."""
    while read_artifact(folder).type == "adapter":
        folder = base_folder(folder)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ToolkitError(f"not a readable model config: {error}", where=str(folder)) from error


def _template(contestant: Contestant) -> str | None:
    tokenizer: PreTrainedTokenizerBase = load_tokenizer(contestant.folder)
    return chat_template(tokenizer)
