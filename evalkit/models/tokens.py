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
from evalkit.models.normalizer import refuse_contradiction
from evalkit.ragged import offsets

FIRST_TOKENS = ("<s>", "[CLS]")
LAST_TOKENS = ("</s>", "[SEP]")
PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|endoftext|>")
MASK_TOKENS = ("<mask>", "[MASK]")
UNKNOWN_TOKENS = ("<unk>", "[UNK]")
END_TOKENS = ("</s>", "[SEP]", "<|endoftext|>", "<|im_end|>", "<eos>", "<|end_of_text|>")
"""Names of the last token in decoders; LAST_TOKENS are those in encoders."""
TEXTS_PER_CALL = 1024
"""Texts per call of the tokenizer: enough to keep its threads busy."""
CHARACTERS_PER_TOKEN = 5
"""Characters of a long text to tokenise for each token id still needed: enough for most texts in any language."""
_END_OF_WORD = re.compile(r"[^\W_] ")
"""A letter or digit followed by a space."""


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
        offsets_N = offsets(np.array([len(text_ids) for text_ids in ids], dtype=np.int64))
        # The empty array lets concatenate accept a table of no texts.
        arrays = [np.empty(0, dtype=np.int32), *(np.asarray(text_ids, dtype=np.int32) for text_ids in ids)]
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
    def __getitem__(self, index: int) -> Tokens: ...
    @overload
    def __getitem__(self, index: slice) -> TokenTable: ...
    def __getitem__(self, index: int | slice) -> Tokens | TokenTable:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        row = range(len(self))[index]  # handles negative positions, and raises the IndexError that ends an iteration
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
    """The token id that expands queries."""
    size: int
    """The number of tokens, including added ones."""
    begin: tuple[int, ...] = ()
    """The token ids that every text begins with: `first`, or those that the tokenizer's post-processor adds."""
    end: tuple[int, ...] = ()
    """The token ids that every text ends with: `last`, or those that the tokenizer's post-processor adds."""
    strips: bool = False
    """Whether white space around a text is stripped first, as in sentence-transformers."""

    @cached_property
    def splits_at_spaces(self) -> bool:
        """Whether no token spans a space, so that the text before and after a space can be tokenised separately."""
        splitter = self.tokenizer.pre_tokenizer
        if splitter is None:
            return False
        # Neither a word of the pre-tokenizer nor an added token may contain letters from both sides of a space.
        spans = [span for _, span in splitter.pre_tokenize_str("ab cd")]
        words_are_split = all(end <= 3 or begin >= 2 for begin, end in spans)
        added = (token.content for token in self.tokenizer.get_added_tokens_decoder().values())
        added_are_split = not any(map(_END_OF_WORD.search, added))
        whole, *parts = (self.tokenizer.encode(text, add_special_tokens=False).ids for text in ("ab cd", "ab", " cd"))
        return words_are_split and added_are_split and whole == [*parts[0], *parts[1]]

    def encoded(self, texts: Sequence[str], room: int) -> list[list[int]]:
        """Return the first `room` token ids of each text, without special tokens.

        A long text is tokenised in parts that end at a word boundary, until there are enough token ids.
        """
        found: list[list[int]] = [[] for _ in texts]
        begins = [0] * len(texts)
        unfinished: Sequence[int] = range(len(texts))
        while unfinished:
            ends = [self._part_end(texts[i], begins[i], room - len(found[i])) for i in unfinished]
            parts = [texts[i][begins[i] : end] for i, end in zip(unfinished, ends, strict=True)]
            encodings = self.tokenizer.encode_batch_fast(parts, add_special_tokens=False)
            for i, end, encoding in zip(unfinished, ends, encodings, strict=True):
                found[i] += encoding.ids
                begins[i] = end
            unfinished = [i for i in unfinished if len(found[i]) < room and begins[i] < len(texts[i])]
        return [ids[:room] for ids in found]

    def _part_end(self, text: str, begin: int, missing: int) -> int:
        """Return the end of the next part of a text, long enough that it probably yields the `missing` token ids."""
        probable_end = begin + missing * CHARACTERS_PER_TOKEN
        if len(text) <= probable_end or not self.splits_at_spaces:
            return len(text)
        found = _END_OF_WORD.search(text, probable_end)
        return len(text) if found is None else found.start() + 1

    def marker(self, token: str) -> int:
        """Return a marker's token id. Raises ModelError if the tokenizer has no such token."""
        found = self.tokenizer.token_to_id(token)
        if found is None:
            msg = f"the tokenizer has no token {token!r}; wanted the marker that the model's config names"
            raise ModelError(msg)
        return int(found)

    def markers(self, rules: TextRules) -> list[int]:
        """Return the ids of the markers that follow the first token. Raises ModelError if one is not a token.

        A marker is one token, including its spaces (PyLate's `[Q] ` ends in one), or several separated by spaces.
        """
        marker = rules.marker or ""
        if marker and (token_id := self.tokenizer.token_to_id(marker)) is not None:
            return [int(token_id)]
        return [self.marker(token) for token in marker.split()]


def load_vocabulary(checkpoint: Checkpoint, *, own_template: bool = False) -> Vocabulary:
    """Load `tokenizer.json` with its own truncation and padding turned off. Raises ModelError if it is unusable.

    It is also refused if tokenizer_config.json asks transformers for another normaliser.

    With `own_template`, texts begin and end with the tokens that the tokenizer's post-processor adds. If there is no
    mask token, queries are expanded with the end token, as PyLate does for decoders.
    """
    path = checkpoint.folder / TOKENIZER
    try:
        tokenizer = Tokenizer.from_file(str(path))
        # Some faults only appear in use: WordPiece without its unknown token fails at the first unknown word.
        tokenizer.encode("a \ue000 文", add_special_tokens=False)
    except BaseException as error:  # tokenizers raises a bare Exception for malformed files, or a Rust panic
        if not _rust_error(error):
            raise
        msg = f"{path}: not a tokenizer file ({error}); fetch the file again"
        raise ModelError(msg) from error
    refuse_contradiction(tokenizer, checkpoint.folder)
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
    """Whether an error is an Exception or a Rust panic, which PyO3 raises as a BaseException."""
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def vocabulary_of(config: EncoderConfig, checkpoint: Checkpoint) -> Vocabulary:
    """Load a model's tokenizer under the rules of its backbone."""
    return load_vocabulary(checkpoint, own_template=config.backbone == "transformers")


def _by_template(tokenizer: Tokenizer, checkpoint: Checkpoint) -> Vocabulary:
    """Return the vocabulary of a tokenizer with the tokens that its post-processor adds to a text.

    Raises ModelError if it does not keep the text's own token ids, or has no token that can expand queries.
    """
    text = tokenizer.encode("a", add_special_tokens=False).ids
    whole = tokenizer.encode("a", add_special_tokens=True).ids
    at = next((start for start in range(len(whole)) if whole[start : start + len(text)] == text), None)
    if not text or at is None:
        msg = f"{checkpoint.origin}: {TOKENIZER} encodes 'a' as {whole}, wanted its own token ids {text} in that"
        raise ModelError(f"{msg}; fetch the file again")
    begin, end = tuple(whole[:at]), tuple(whole[at + len(text) :])
    if not (begin or end):
        ids = [token for names in (FIRST_TOKENS, LAST_TOKENS) if (token := _first_id(tokenizer, names)) is not None]
        begin, end = tuple(ids[:1]), tuple(ids[1:2])
    last = end[-1] if end else _first_id(tokenizer, END_TOKENS)
    mask = _first_id(tokenizer, MASK_TOKENS)
    expanding = mask if mask is not None else last
    if last is None or expanding is None:
        msg = f"{checkpoint.origin}: {TOKENIZER} has neither a mask token nor an end token"
        raise ModelError(f"{msg} ({', '.join((*MASK_TOKENS, *END_TOKENS))}); wanted one that expands queries")
    pad = _first_id(tokenizer, PAD_TOKENS)
    return Vocabulary(
        tokenizer=tokenizer,
        first=begin[0] if begin else last,
        last=last,
        pad=expanding if pad is None else pad,
        mask=expanding,
        size=tokenizer.get_vocab_size(with_added_tokens=True),
        begin=begin,
        end=end,
        strips=True,
    )


def _first_id(tokenizer: Tokenizer, names: Sequence[str]) -> int | None:
    """Return the id of the first of these tokens that the tokenizer has, or None."""
    ids = (tokenizer.token_to_id(name) for name in names)
    return next((int(token) for token in ids if token is not None), None)


def _special(tokenizer: Tokenizer, names: Sequence[str]) -> int:
    """Return the id of the first of these tokens that the tokenizer has. Raises ModelError if it has none."""
    found = _first_id(tokenizer, names)
    if found is not None:
        return found
    msg = f"the tokenizer has none of the special tokens {', '.join(names)}; wanted an XLM-R or BERT vocabulary"
    raise ModelError(msg)


def tokenize(texts: Sequence[str], rules: TextRules, vocabulary: Vocabulary) -> TokenTable:
    """Return each text's token ids: first token, markers, truncated text, last token, and mask tokens if expanded.

    Truncation leaves room for the special tokens, so a long text still ends with the last token. The texts are
    tokenised TEXTS_PER_CALL at a time, because the tokenizer's own records take many times the memory of the token ids.
    Raises ModelError for a marker that the tokenizer does not have.
    """
    markers, begin, end = vocabulary.markers(rules), list(vocabulary.begin), list(vocabulary.end)
    room = rules.max_tokens - len(markers) - len(begin) - len(end)
    encoded: list[np.ndarray] = []
    attended: list[int] = []
    for start in range(0, len(texts), TEXTS_PER_CALL):
        prompted = [f"{rules.prompt}{text}" for text in texts[start : start + TEXTS_PER_CALL]]
        if vocabulary.strips:
            prompted = [text.strip() for text in prompted]
        for text_ids in vocabulary.encoded(prompted, room):
            ids = [*begin, *text_ids, *end]
            ids[1:1] = markers  # after the first id, whatever that is, as in PyLate
            unexpanded = len(ids)
            if rules.expansion:
                ids += [vocabulary.mask] * (rules.max_tokens - unexpanded)
            encoded.append(np.array(ids, dtype=np.int32))
            attended.append(len(ids) if rules.attend_to_expansion else unexpanded)
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
        unknown = {_first_id(tokenizer, UNKNOWN_TOKENS)} if None in found else set()
        return frozenset(int(token) for token in found | unknown if token is not None)
    encoded = (tokenizer.encode(character, add_special_tokens=False).ids for character in string.punctuation)
    return frozenset(ids[0] for ids in encoded if ids)
