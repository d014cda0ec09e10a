"""Text to token ids, exactly as a checkpoint was trained: markers, cuts, query expansion, the punctuation skiplist.

Shapes: N texts, X ids of all texts packed.
The rules are those of Stanford ColBERT and PyLate, read from the checkpoints' own `artifact.metadata`.
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

from evalkit.config.settings import TextRules
from evalkit.errors import ModelError
from evalkit.models.checkpoint import TOKENIZER, Checkpoint
from evalkit.ragged import offsets

FIRST_TOKENS = ("<s>", "[CLS]")
LAST_TOKENS = ("</s>", "[SEP]")
PAD_TOKENS = ("<pad>", "[PAD]")
MASK_TOKENS = ("<mask>", "[MASK]")
UNKNOWN_TOKENS = ("<unk>", "[UNK]")
TEXTS_AT_ONCE = 1024
"""Texts per call of the tokenizer: enough to keep its threads busy."""
CHARACTERS_A_TOKEN = 5
"""What is read of a long text at a time for each token that is missing: enough for most texts of any language."""
_END_OF_WORD = re.compile(r"[^\W_] ")


class Tokens(NamedTuple):
    """One text's ids, and how many of them (from the left) the others attend to."""

    ids: list[int]
    attended: int


@dataclass(frozen=True, eq=False)
class TokenTable(Sequence[Tokens]):
    """The ids of many texts in one array: 4 bytes an id, where lists take 36, and batches are cut by numpy alone."""

    ids_X: np.ndarray
    """Text i owns the ids from `offsets_N[i]` to `offsets_N[i + 1]`."""
    offsets_N: np.ndarray
    attended_N: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[Tokens]) -> TokenTable:
        """Return the texts as a table, or the table that they are already."""
        if isinstance(texts, TokenTable):
            return texts
        return cls.packed([text.ids for text in texts], [text.attended for text in texts])

    @classmethod
    def packed(cls, ids: Sequence[Sequence[int] | np.ndarray], attended: Sequence[int]) -> TokenTable:
        """Pack each text's ids, and how many of them are attended to."""
        offsets_N = offsets(np.array([len(of_text) for of_text in ids], dtype=np.int64))
        arrays = [np.empty(0, dtype=np.int32), *(np.asarray(of_text, dtype=np.int32) for of_text in ids)]
        return cls(np.concatenate(arrays), offsets_N, np.array(attended, dtype=np.int64))

    @cached_property
    def lengths_N(self) -> np.ndarray:
        """Return how many ids each text has."""
        lengths_N: np.ndarray = np.diff(self.offsets_N)
        return lengths_N

    def take(self, rows: Sequence[int] | np.ndarray) -> TokenTable:
        """Return some of the texts, in the order of `rows`."""
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
        row = range(len(self))[place]  # negative places, and IndexError, which ends an iteration
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

    @cached_property
    def splits_at_spaces(self) -> bool:
        """Whether no token reaches over a space, so that what is before one and what is behind can be read apart."""
        splitter = self.tokenizer.pre_tokenizer
        if splitter is None:
            return False
        pieces = [ends for _, ends in splitter.pre_tokenize_str("ab cd")]
        added = (token.content for token in self.tokenizer.get_added_tokens_decoder().values())
        apart = all(end <= 3 or begin >= 2 for begin, end in pieces) and not any(map(_END_OF_WORD.search, added))
        whole, *parts = (self.tokenizer.encode(text, add_special_tokens=False).ids for text in ("ab cd", "ab", " cd"))
        return apart and whole == [*parts[0], *parts[1]]

    def encoded(self, texts: Sequence[str], room: int) -> list[list[int]]:
        """Return the first `room` ids of each text, without special tokens.

        A long text is read a part at a time, each up to the end of a word, until it has given enough.
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
        """Return where the part of a text ends that is likely to give the ids that are missing."""
        likely = begin + missing * CHARACTERS_A_TOKEN
        if len(text) <= likely or not self.splits_at_spaces:
            return len(text)
        end = _END_OF_WORD.search(text, likely)
        return len(text) if end is None else end.start() + 1

    def marker(self, token: str) -> int:
        """Return a marker's id. Raises ModelError when the tokenizer has no such token."""
        found = self.tokenizer.token_to_id(token)
        if found is None:
            msg = f"the tokenizer has no token {token!r}; wanted the marker that the model's config names"
            raise ModelError(msg)
        return int(found)

    def markers(self, rules: TextRules) -> list[int]:
        """Return the ids behind the first token. Raises ModelError for a token that the tokenizer has not."""
        return [self.marker(token) for token in (rules.marker or "").split()]


def load_vocabulary(checkpoint: Checkpoint) -> Vocabulary:
    """Load `tokenizer.json`, with its own cutting and padding off. Raises ModelError when it is unusable."""
    path = checkpoint.folder / TOKENIZER
    try:
        tokenizer = Tokenizer.from_file(str(path))
        # Some mistakes show in use only: WordPiece without its unknown token fails at the first word that it lacks.
        tokenizer.encode("a \ue000 文", add_special_tokens=False)
    except BaseException as error:  # tokenizers raises bare Exception for every malformed file, and Rust's panics
        if not _rust_error(error):
            raise
        msg = f"{path}: not a tokenizer file ({error}); fetch the file again"
        raise ModelError(msg) from error
    # all-MiniLM-L6-v2's file asks for cutting at 128 and padding to 128: the config's lengths decide here.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return Vocabulary(
        tokenizer=tokenizer,
        first=_special(tokenizer, FIRST_TOKENS),
        last=_special(tokenizer, LAST_TOKENS),
        pad=_special(tokenizer, PAD_TOKENS),
        mask=_special(tokenizer, MASK_TOKENS),
        size=tokenizer.get_vocab_size(with_added_tokens=True),
    )


def _rust_error(error: BaseException) -> bool:
    """Whether an error came out of Rust code: PyO3 makes panics a BaseException that no `except Exception` catches."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def _special(tokenizer: Tokenizer, names: Sequence[str]) -> int:
    for name in names:
        found = tokenizer.token_to_id(name)
        if found is not None:
            return int(found)
    msg = f"the tokenizer has none of the special tokens {', '.join(names)}; wanted an XLM-R or BERT vocabulary"
    raise ModelError(msg)


def tokenize(texts: Sequence[str], rules: TextRules, vocabulary: Vocabulary) -> TokenTable:
    """Return each text's ids: first token, marker, text cut to fit, last token, and mask tokens where expanded.

    The cut leaves room for the special tokens, so a long text still ends in the last token. Texts go to the tokenizer
    some at a time, because its own records of a text take many times the room of the ids.
    """
    head = [vocabulary.first, *vocabulary.markers(rules)]
    room = rules.max_tokens - len(head) - 1
    encoded: list[np.ndarray] = []
    attended: list[int] = []
    for begin in range(0, len(texts), TEXTS_AT_ONCE):
        some = list(texts[begin : begin + TEXTS_AT_ONCE])
        for of_text in vocabulary.encoded(some, room):
            ids = [*head, *of_text, vocabulary.last]
            real = len(ids)
            if rules.expansion:
                ids += [vocabulary.mask] * (rules.max_tokens - real)
            encoded.append(np.array(ids, dtype=np.int32))
            attended.append(len(ids) if rules.attend_to_expansion else real)
    return TokenTable.packed(encoded, attended)


def skipped_ids(skiplist: Literal["stanford", "pylate", "none"], vocabulary: Vocabulary) -> frozenset[int]:
    """Return the ids whose document vectors are dropped, one rule per library.

    `stanford` (colbert-ai, fastembed) drops the first id of each encoded punctuation character: for XLM-R's "."
    that is "▁", so the plain "." stays. `pylate` drops the id of the character itself.
    """
    if skiplist == "none":
        return frozenset()
    tokenizer = vocabulary.tokenizer
    if skiplist == "pylate":
        found = (tokenizer.token_to_id(character) for character in string.punctuation)
        return frozenset(int(token) for token in found if token is not None)
    encoded = (tokenizer.encode(character, add_special_tokens=False).ids for character in string.punctuation)
    return frozenset(ids[0] for ids in encoded if ids)
