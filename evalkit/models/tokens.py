"""Text to token ids, exactly as a checkpoint was trained: markers, cuts, query expansion, the punctuation skiplist.

The rules are those of Stanford ColBERT and PyLate, read from the checkpoints' own `artifact.metadata`.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from tokenizers import Tokenizer

from evalkit.config import TextRules
from evalkit.errors import ModelError
from evalkit.models.checkpoint import TOKENIZER, Checkpoint

FIRST_TOKENS = ("<s>", "[CLS]")
LAST_TOKENS = ("</s>", "[SEP]")
PAD_TOKENS = ("<pad>", "[PAD]")
MASK_TOKENS = ("<mask>", "[MASK]")


class Tokens(NamedTuple):
    """One text's ids, and how many of them (from the left) the others attend to."""

    ids: list[int]
    attended: int


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A checkpoint's tokenizer with the ids of its special tokens."""

    tokenizer: Tokenizer
    first: int
    last: int
    pad: int
    mask: int
    size: int

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
    except Exception as error:  # tokenizers raises bare Exception for every malformed file
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


def _special(tokenizer: Tokenizer, names: Sequence[str]) -> int:
    for name in names:
        found = tokenizer.token_to_id(name)
        if found is not None:
            return int(found)
    msg = f"the tokenizer has none of the special tokens {', '.join(names)}; wanted an XLM-R or BERT vocabulary"
    raise ModelError(msg)


def tokenize(texts: Sequence[str], rules: TextRules, vocabulary: Vocabulary) -> list[Tokens]:
    """Return each text's ids: first token, marker, text cut to fit, last token, and mask tokens where expanded.

    The cut leaves room for the special tokens, so a long text still ends in the last token.
    """
    head = [vocabulary.first, *vocabulary.markers(rules)]
    room = rules.max_tokens - len(head) - 1
    encodings = vocabulary.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    tokens = []
    for encoding in encodings:
        ids = [*head, *encoding.ids[:room], vocabulary.last]
        real = len(ids)
        if rules.expansion:
            ids += [vocabulary.mask] * (rules.max_tokens - real)
        tokens.append(Tokens(ids, len(ids) if rules.attend_to_expansion else real))
    return tokens


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
