"""Settings of every stage that reads conversations: ``pack``, ``sft``, ``dpo``. Light: no torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toolkit.stage import Reference, Settings


class ChatSettings(Settings):
    """How rows are read, and rendered as text."""

    columns: dict[str, str] | None = Field(
        default=None,
        description="For files with other keys, ours to theirs: {prompt: question, completion: "
        "answer}.",
    )
    on_error: Literal["stop", "drop"] = Field(
        default="stop",
        description="What a malformed row does: stop the stage, or be dropped, counted and named. "
        "Rows with nothing to learn from (an empty answer) are always dropped, counted and named.",
    )
    chat_template: Literal["model", "chatml", "plain", "none"] = Field(
        default="model",
        description="model: the tokenizer's own; chatml or plain: ours, saved with the result; "
        "none: prompt and answer as they are, then EOS.",
    )
    chat_template_path: Annotated[str, Reference(files=True)] | None = Field(
        default=None,
        description="A .jinja file instead, saved with the result; it must mark the assistant's "
        "text and its end token with {% generation %}.",
    )

    @model_validator(mode="after")
    def _one_template(self) -> Self:
        if self.chat_template_path and self.chat_template != "model":
            raise ValueError(
                f"chat_template_path besides chat_template {self.chat_template}; set one of them"
            )
        return self


def known_columns(columns: dict[str, str] | None, fields: tuple[str, ...]) -> dict[str, str] | None:
    """The ``columns`` setting, if it maps our ``fields`` alone.

    Raises:
        ValueError: naming the unknown field and the valid ones.
    """
    unknown = [field for field in columns or () if field not in fields]
    if unknown:
        raise ValueError(
            f"columns maps the unknown field {unknown[0]}; our fields are {', '.join(fields)}, "
            "and each is given the name of a key of the files"
        )
    return columns
