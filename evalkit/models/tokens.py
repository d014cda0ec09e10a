"""Token ids of texts, exactly as in a checkpoint's training: markers, truncation, query expansion, skiplist.

The rules are those of Stanford ColBERT and PyLate, as the checkpoints' `artifact.metadata` states them.

Shapes: N texts, X token ids of all texts, concatenated.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, overload

import numpy as np
from tokenizers import Tokenizer

from evalkit.config.settings import EncoderConfig, TextRules
from evalkit.errors import ModelError
from evalkit.models.checkpoint import TOKENIZER, Checkpoint
from evalkit.ragged import offsets

FIRST_TOKENS = ("<s>", "[CLS]")
LAST_TOKENS = ("</s>", "[SEP]")
PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|endoftext|>")
MASK_TOKENS = ("<mask>", "[MASK]")
UNKNOWN_TOKENS = ("<unk>", "[UNK]")
END_TOKENS = ("</s>", "[SEP]", "<|endoftext|>", "<|im_end|>", "<eos>", "<|end_of_text|>")
"""Names of the last token in decoders; LAST_TOKENS are those in encoders."""
TEXTS_AT_ONCE = 1024
"""Texts per call of the tokenizer: enough to keep its threads busy."""
CHARACTERS_A_TOKEN = 5
"""Characters of a long text to tokenise for each token id still needed: enough for most texts in any language."""
_END_OF_WORD = re.compile(r"[^\W_] ")


class Tokens(NamedTuple):
    """One text's token ids, and how many of them, from the left, are attended to."""

    ids: list[int]
    attended: int


@dataclass(frozen=True, eq=False)
class TokenTable(Sequence[Tokens]):
    """The token ids of many texts in one array, from which numpy builds batches: 4 bytes per id, not 36 as in lists."""

    ids_X: np.ndarray
    """Text i owns the token ids from `offsets_N[i]` to `offsets_N[i + 1]`."""
    offsets_N: np.ndarray
    """N + 1 offsets, int64."""
    attended_N: np.ndarray
    """How many of each text's token ids, from the left, are attended to."""

    @classmethod
    def of(cls, texts: Sequence[Tokens]) -> TokenTable:
        """Return the texts as a table; a table is returned unchanged."""
        if isinstance(texts, TokenTable):
            return texts
        return cls.of_ids([text.ids for text in texts], [text.attended for text in texts])

    @classmethod
    def of_ids(cls, ids: Sequence[Sequence[int] | np.ndarray], attended: Sequence[int]) -> TokenTable:
        """Build a table from each text's token ids and the number of them that is attended to."""
        offsets_N = offsets(np.array([len(of_text) for of_text in ids], dtype=np.int64))
        arrays = [np.empty(0, dtype=np.int32), *(np.asarray(of_text, dtype=np.int32) for of_text in ids)]
        return cls(np.concatenate(arrays), offsets_N, np.array(attended, dtype=np.int64))

    @cached_property
    def lengths_N(self) -> np.ndarray:
        """Return the number of token ids of each text [N]."""
        lengths_N: np.ndarray = np.diff(self.offsets_N)
        return lengths_N

    def take(self, rows: Sequence[int] | np.ndarray) -> TokenTable:
        """Return a table of the texts at positions `rows`, in that order."""
        lengths_N = self.lengths_N[rows]
        offsets_N = offsets(lengths_N)
        shift_N = self.offsets_N[:-1][rows] - offsets_N[:-1]
        index_X = np.repeat(shift_N, lengths_N) + np.arange(offsets_N[-1])
        return TokenTable(self.ids_X[index_X], offsets_N, self.attended_N[rows])

    def __len__(self) -> int:
        return len(self.attended_N)

    @overload
    def __getitem__(self, place: int) -> Tokens: ...
    @overload
    def __getitem__(self, place: slice) -> TokenTable: ...
    def __getitem__(self, place: int | slice) -> Tokens | TokenTable:
        if isinstance(place, slice):
            return self.take(np.arange(len(self))[place])
        row = range(len(self))[place]  # handles negative positions, and raises the IndexError that ends an iteration
        ids = self.ids_X[self.offsets_N[row] : self.offsets_N[row + 1]].tolist()
        return Tokens(ids, int(self.attended_N[row]))


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A checkpoint's tokenizer with the ids of its special tokens."""

    tokenizer: Tokenizer
    first: int
    last: int
    pad: int
    mask: int
    size: int
    begin: tuple[int, ...] = ()
    """The token ids that every text begins with (`end`: ends with): `first` and `last`, or the tokenizer's own."""
    end: tuple[int, ...] = ()
    strips: bool = False
    """Whether white space around a text is stripped first, as in sentence-transformers."""

    @cached_property
    def splits_at_spaces(self) -> bool:
        """Whether no token spans a space, so that the text before and after a space can be tokenised separately."""
        splitter = self.tokenizer.pre_tokenizer
        if splitter is None:
            return False
        pieces = [ends for _, ends in splitter.pre_tokenize_str("ab cd")]
        added = (token.content for token in self.tokenizer.get_added_tokens_decoder().values())
        apart = all(end <= 3 or begin >= 2 for begin, end in pieces) and not any(map(_END_OF_WORD.search, added))
        whole, *parts = (self.tokenizer.encode(text, add_special_tokens=False).ids for text in ("ab cd", "ab", " cd"))
        return apart and whole == [*parts[0], *parts[1]]

    def encoded(self, texts: Sequence[str], room: int) -> list[list[int]]:
        """Return the first `room` token ids of each text, without special tokens.

        A long text is tokenised in parts that end at a word boundary, until there are enough token ids.
        """
        found: list[list[int]] = [[] for _ in texts]
        begins = [0] * len(texts)
        todo: Sequence[int] = range(len(texts))
        while todo:
            ends = [self._end(texts[place], begins[place], room - len(found[place])) for place in todo]
            parts = [texts[place][begins[place] : end] for place, end in zip(todo, ends, strict=True)]
            read = self.tokenizer.encode_batch_fast(parts, add_special_tokens=False)
            for place, end, encoding in zip(todo, ends, read, strict=True):
                found[place] += encoding.ids
                begins[place] = end
            todo = [place for place in todo if len(found[place]) < room and begins[place] < len(texts[place])]
        return [ids[:room] for ids in found]

    def _end(self, text: str, begin: int, missing: int) -> int:
        """Return the end of the next part of a text, long enough that it probably yields the `missing` token ids."""
        likely = begin + missing * CHARACTERS_A_TOKEN
        if len(text) <= likely or not self.splits_at_spaces:
            return len(text)
        end = _END_OF_WORD.search(text, likely)
        return len(text) if end is None else end.start() + 1

    def marker(self, token: str) -> int:
        """Return a marker's token id. Raises ModelError if the tokenizer has no such token."""
        found = self.tokenizer.token_to_id(token)
        if found is None:
            msg = f"the tokenizer has no token {token!r}; wanted the marker that the model's config names"
            raise ModelError(msg)
        return int(found)

    def markers(self, rules: TextRules) -> list[int]:
        """Return the ids after the first token. Raises ModelError if the tokenizer lacks such a token.

        A marker is one token, including its spaces (PyLate's `[Q] ` ends in one), or several separated by spaces.
        """
        marker = rules.marker or ""
        if marker and (whole := self.tokenizer.token_to_id(marker)) is not None:
            return [int(whole)]
        return [self.marker(token) for token in marker.split()]


def load_vocabulary(checkpoint: Checkpoint, *, own_template: bool = False) -> Vocabulary:
    """Load `tokenizer.json` with its own truncation and padding turned off. Raises ModelError if it is unusable.

    With `own_template`, texts begin and end as in the tokenizer's post-processor, whatever its tokens are called; if
    there is no mask token, queries are expanded with the end token, as PyLate does for decoders.
    """
    path = checkpoint.folder / TOKENIZER
    try:
        tokenizer = Tokenizer.from_file(str(path))
        # Some faults only appear in use: WordPiece without its unknown token fails at the first unknown word.
        tokenizer.encode("a \ue000 文", add_special_tokens=False)
    except BaseException as error:  # tokenizers raises a bare Exception for malformed files, or a panic of Rust
        if not _rust_error(error):
            raise
        msg = f"{path}: not a tokenizer file ({error}); fetch the file again"
        raise ModelError(msg) from error
    # all-MiniLM-L6-v2's file sets truncation and padding to 128 tokens; evalkit uses the lengths of the config.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if own_template:
        return _by_template(tokenizer, checkpoint)
    first, last = _special(tokenizer, FIRST_TOKENS), _special(tokenizer, LAST_TOKENS)
    return Vocabulary(
        tokenizer=tokenizer,
        first=first,
        last=last,
        pad=_special(tokenizer, PAD_TOKENS),
        mask=_special(tokenizer, MASK_TOKENS),
        size=tokenizer.get_vocab_size(with_added_tokens=True),
        begin=(first,),
        end=(last,),
    )


def _rust_error(error: BaseException) -> bool:
    """Whether an error is a panic of Rust code, which PyO3 raises as a BaseException."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def vocabulary_of(config: EncoderConfig, checkpoint: Checkpoint) -> Vocabulary:
    """Load a model's tokenizer under the rules of its backbone."""
    return load_vocabulary(checkpoint, own_template=config.backbone == "transformers")


def _by_template(tokenizer: Tokenizer, checkpoint: Checkpoint) -> Vocabulary:
    """Return the vocabulary of a tokenizer with the tokens that its post-processor adds to a text."""
    text = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    at = next((place for place in range(len(whole)) if whole[place : place + len(text)] == text), None)
    if not text or at is None:
        msg = f"{checkpoint.origin}: {TOKENIZER} puts {whole} around {text} for the text 'a', wanted it around the text"
        raise ModelError(f"{msg}; fetch the file again")
    begin, end = tuple(whole[:at]), tuple(whole[at + len(text) :])
    if not (begin or end):
        found = [name for names in (FIRST_TOKENS, LAST_TOKENS) if (name := _found(tokenizer, names)) is not None]
        begin, end = tuple(found[:1]), tuple(found[1:2])
    last = end[-1] if end else _found(tokenizer, END_TOKENS)
    mask = _found(tokenizer, MASK_TOKENS)
    filler = mask if mask is not None else last
    if last is None or filler is None:
        msg = f"{checkpoint.origin}: {TOKENIZER} has neither a mask token nor an end token"
        raise ModelError(f"{msg} ({', '.join((*MASK_TOKENS, *END_TOKENS))}); wanted one that expands queries")
    pad = _found(tokenizer, PAD_TOKENS)
    return Vocabulary(
        tokenizer=tokenizer,
        first=begin[0] if begin else last,
        last=last,
        pad=filler if pad is None else pad,
        mask=filler,
        size=tokenizer.get_vocab_size(with_added_tokens=True),
        begin=begin,
        end=end,
        strips=True,
    )


def _found(tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    ids = (tokenizer.token_to_id(name) for name in names)
    return next((int(token) for token in ids if token is not None), None)


def _special(tokenizer: Tokenizer, names: Sequence[str]) -> int:
    found = _found(tokenizer, names)
    if found is not None:
        return found
    msg = f"the tokenizer has none of the special tokens {', '.join(names)}; wanted an XLM-R or BERT vocabulary"
    raise ModelError(msg)


def tokenize(texts: Sequence[str], rules: TextRules, vocabulary: Vocabulary) -> TokenTable:
    """Return each text's token ids: first token, markers, truncated text, last token, and mask tokens if expanded.

    Truncation leaves room for the special tokens, so a long text still ends with the last token. The texts are
    tokenised TEXTS_AT_ONCE at a time, because the tokenizer's own records take many times the memory of the token ids.
    Raises ModelError for a marker that the tokenizer does not have.
    """
    markers, begin, end = vocabulary.markers(rules), list(vocabulary.begin), list(vocabulary.end)
    room = rules.max_tokens - len(markers) - len(begin) - len(end)
    encoded: list[np.ndarray] = []
    attended: list[int] = []
    for start in range(0, len(texts), TEXTS_AT_ONCE):
        some = [f"{rules.prompt}{text}" for text in texts[start : start + TEXTS_AT_ONCE]]
        if vocabulary.strips:
            some = [text.strip() for text in some]
        for of_text in vocabulary.encoded(some, room):
            ids = [*begin, *of_text, *end]
            ids[1:1] = markers  # after the first id, whatever that is, as in PyLate
            real = len(ids)
            if rules.expansion:
                ids += [vocabulary.mask] * (rules.max_tokens - real)
            encoded.append(np.array(ids, dtype=np.int32))
            attended.append(len(ids) if rules.attend_to_expansion else real)
    return TokenTable.of_ids(encoded, attended)


def skipped_ids(
    skiplist: Literal["stanford", "pylate", "none"], vocabulary: Vocabulary, words: Sequence[str] | None = None
) -> frozenset[int]:
    """Return the ids whose document vectors are dropped, one rule per library.

    `stanford` (colbert-ai, fastembed) drops the first id of each encoded punctuation character: for XLM-R's "."
    that is "▁", so the plain "." stays. `pylate` drops the id of the character itself, or of each of `words`; a word
    that is not a token has the unknown token's id in PyLate, so that id is dropped too.
    """
    if skiplist == "none":
        return frozenset()
    tokenizer = vocabulary.tokenizer
    if skiplist == "pylate":
        found = {tokenizer.token_to_id(word) for word in (string.punctuation if words is None else words)}
        unknown = {_found(tokenizer, UNKNOWN_TOKENS)} if None in found else set()
        return frozenset(int(token) for token in found | unknown if token is not None)
    encoded = (tokenizer.encode(character, add_special_tokens=False).ids for character in string.punctuation)
    return frozenset(ids[0] for ids in encoded if ids)
