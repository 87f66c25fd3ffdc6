"""Token ids as text, for tokenizers of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from toolkit.data.tokenizer_folder import TokenizerFolder, open_sentencepiece

Decode = Callable[[Sequence[int]], str]


def decoder(folder: TokenizerFolder) -> Decode:
    """What turns ids to text, special tokens written out; bytes that are no text show as ``�``.

    Raises:
        DataError: the tokenizer's library can't read it.
    """
    if folder.json is not None:
        return _of_tokenizers(folder.json)
    if folder.kind == "sentencepiece":
        return _of_sentencepiece(folder)
    return _of_ranks(folder)


def token_name(folder: TokenizerFolder, token: int) -> str:
    """What the vocabulary calls an id; nothing where it has none."""
    return next((name for name, number in folder.vocabulary.items() if number == token), "")


def _of_tokenizers(json: str) -> Decode:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(json)
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _of_sentencepiece(folder: TokenizerFolder) -> Decode:
    model = open_sentencepiece(folder.files[0])
    size = model.get_piece_size()

    def decode(ids: Sequence[int]) -> str:
        """Control pieces have no text: they are written by name, between what is decoded."""
        parts: list[str] = []
        run: list[int] = []
        for token in ids:
            if token < size and not model.is_control(token):
                run.append(token)
                continue
            parts += [model.decode(run), model.id_to_piece(token) if token < size else "\ufffd"]
            run = []
        return "".join([*parts, model.decode(run)])

    return decode


def _of_ranks(folder: TokenizerFolder) -> Decode:
    ranks = folder.ranks
    pieces = {number: piece for piece, number in ranks.ids.items()}
    pieces |= {number: name.encode() for name, number in ranks.special_tokens.items()}
    lost = "\ufffd".encode()
    return lambda ids: b"".join(pieces.get(i, lost) for i in ids).decode(errors="replace")
