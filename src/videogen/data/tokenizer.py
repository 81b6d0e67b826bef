"""Mini's tokenizer: CLIP's byte-level BPE (section 3.2 takes CLIP's text encoder) over a small, given vocabulary."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"


def write_tokenizer(folder: Path, texts: Iterable[str], *, max_length: int = 40) -> None:
    """Write a folder that `transformers.CLIPTokenizer.from_pretrained` reads.

    Every word of `texts` becomes one token and anything else falls back to pieces, at worst to bytes: nothing is unknown.
    max_length: tokens with the start and end marks, the length that `padding="max_length"` and truncation give. The same
    words give the same folder. The marks have the last two ids, as in CLIP; padding repeats the end mark.
    """
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    symbols = sorted(ByteLevel.alphabet())
    splitter = CLIPTokenizer().backend_tokenizer  # CLIP's own rule of what a word is
    words = {
        word
        for text in texts
        for word, _ in splitter.pre_tokenizer.pre_tokenize_str(splitter.normalizer.normalize_str(text))  # as bytes
    }
    merges = merges_for(words)
    pieces = [*symbols, *(symbol + WORD_END for symbol in symbols), *(left + right for left, right in merges), START, END]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length).save_pretrained(folder)


def merges_for(words: Iterable[str]) -> list[tuple[str, str]]:
    """BPE merges, first to last, that join each word into one piece.

    A word that is complete stays so whatever follows: until it is complete one of its own merges applies, and that has an
    earlier rank than any later one. So words are done one after the other, each joined from its left.
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in sorted(words, key=lambda word: (len(word), word)):
        pieces = _apply(ranks, [*word[:-1], word[-1] + WORD_END])
        while len(pieces) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
            pieces = _apply(ranks, pieces)
    return list(ranks)


def _apply(ranks: dict[tuple[str, str], int], pieces: list[str]) -> list[str]:
    """Byte pair encoding: join the pair of the earliest rank until none is left."""
    while True:
        pairs = [pair for pair in itertools.pairwise(pieces) if pair in ranks]
        if not pairs:
            return pieces
        best, joined, index = min(pairs, key=ranks.__getitem__), list[str](), 0
        while index < len(pieces):
            if tuple(pieces[index : index + 2]) == best:
                joined.append("".join(best))
                index += 2
            else:
                joined.append(pieces[index])
                index += 1
        pieces = joined
