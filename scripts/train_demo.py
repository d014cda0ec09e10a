"""Build the demo's tokenizer and train its tiny late-interaction checkpoint; a seed makes the result deterministic.

    python scripts/train_demo.py        # writes evalkit/models/demo/

It needs no data and no network. It took 961 s with 2 threads on 2 cores shared with other work (load 2 to 4).
NDCG@10 on the default evaluation collection (1,000 documents, 200 queries, seed 7):

    dim   same-language   cross-lingual        (BM25 with plain word tokens: .470 and .033)
    128            .871            .798
     96            .867            .801
     64            .868            .808

The result has the same files and tensors as the three repositories of jina-colbert-v2: one shared backbone and a linear
head per dim. They are trained together, on the sum of the losses, on facts whose names occur in no evaluation
collection. Loss, curriculum and number of steps were chosen on a validation slice of the training partition. The
evaluation partition is scored only after the last step, so no choice depends on it.

Shapes: B queries of a batch, N documents of a batch, L query tokens, T document tokens, H hidden size, D dim.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import string
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 (the name in torch's documentation)
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram
from torch import Tensor, nn
from transformers import JinaEmbeddingsV3Config, JinaEmbeddingsV3Model

import evalkit
from evalkit.config.settings import DemoSize
from evalkit.datasets.demo import (
    ATTRIBUTES_PER_KIND,
    DOCUMENTS_PER_ENTITY,
    ENTITIES_PER_REGION,
    KINDS,
    LANGUAGES,
    SPELLINGS,
    DemoCorpus,
    Fact,
    Language,
    Partition,
    load_demo,
)
from evalkit.types import Qrels

DIMS: Final = (128, 96, 64)
FOLDERS: Final = {128: "demo-colbert", 96: "demo-colbert-96", 64: "demo-colbert-64"}
ROOT: Final = Path(evalkit.__file__).parent
PHRASES: Final = ROOT / "datasets" / "demo_phrases.toml"

SYLLABLE_SCORE: Final = -3.0
WORD_SCORE: Final = -7.0
"""Lower than the score of two syllables, so that a name that begins like a word ("nada…") is split into syllables."""
CHARACTER_SCORE: Final = -12.0
_WORD: Final = re.compile(r"[^\W\d_\u4e00-\u9fff](?:[^\W\d_\u4e00-\u9fff]|[\u0900-\u0963])*")
"""Matches runs of letters and Devanagari vowel signs; Chinese has no spaces and is split into characters."""
FIRST, PAD, LAST = 0, 1, 2
QUERY_TOKENS: Final = 32
DOCUMENT_TOKENS: Final = 300
PUNCTUATION: Final = string.punctuation
HIDDEN: Final = 128
LAYERS: Final = 2
HEADS: Final = 2
INTERMEDIATE: Final = 256
ROPE_BASE: Final = 10000.0

BATCH: Final = 24
STEPS: Final = 1200
SHORT_SHARE: Final = 0.75
"""The share of steps, at the start, that use only passages of at most median length; these are twice as fast."""
WARMUP_STEPS: Final = 100
PEAK_LEARNING_RATE: Final = 2e-3
TEMPERATURE: Final = 1.0
"""Divides a score, which is a sum of up to 32 cosines."""
RELATED_WEIGHT: Final = 0.5
CROSS_LINGUAL_SHARE: Final = 0.8
TRAINING_REGIONS: Final = 100_000
VALIDATION_DOCUMENTS: Final = 900
VALIDATION_QUERIES: Final = 200


# --- tokenizer ---------------------------------------------------------------------------------------------------


def build_tokenizer() -> Tokenizer:
    """Build an XLM-R style Unigram tokenizer from the words of the phrases, the syllables of names, and characters.

    No name is used. Syllables have the best score, so a name has one token per syllable in every script, and a model
    can learn which syllables correspond. Other text is split into syllables and characters.
    """
    normal = _normalizer()
    texts = [normal.normalize_str(text) for text in _wording_strings()]
    syllables = sorted({normal.normalize_str(syllable) for table in SPELLINGS.values() for syllable in table})
    words = sorted({word for text in texts for word in _WORD.findall(text)})
    characters = sorted({c for text in (*texts, *syllables) for c in text if c != " "} | {*PUNCTUATION, *string.digits})
    # XLM-R's order: token id 4 is the comma, 5 the full stop, 6 the word boundary.
    pieces = dict.fromkeys([",", ".", "▁", *characters, "·"], CHARACTER_SCORE)
    pieces |= {"▁" + word: WORD_SCORE for word in words}
    pieces |= {prefix + syllable: SYLLABLE_SCORE for syllable in syllables for prefix in ("", "▁")}
    vocabulary = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *pieces.items()]
    vocabulary += [("<mask>", 0.0), ("[QueryMarker]", 0.0), ("[DocumentMarker]", 0.0)]
    tokenizer = Tokenizer(Unigram(vocabulary, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normal
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.add_special_tokens(["[QueryMarker]", "[DocumentMarker]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return tokenizer


def _normalizer() -> normalizers.Normalizer:
    # Lower case halves the vocabulary that a tiny model must learn; XLM-R itself keeps case.
    return normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])


def _wording_strings() -> list[str]:
    def strings(node: object) -> Iterator[str]:
        if isinstance(node, str):
            yield node
        elif isinstance(node, Mapping):
            for child in node.values():
                yield from strings(child)
        elif isinstance(node, list):
            for child in node:
                yield from strings(child)

    texts = list(strings(tomllib.loads(PHRASES.read_text(encoding="utf-8"))))
    for field in ("{n}", "{r}", "{o}", "{k}", "{v}"):
        texts = [text.replace(field, " ") for text in texts]
    return texts


class Markers(NamedTuple):
    """Token ids of the mask and the two markers."""

    mask: int
    query: int
    document: int


def query_ids(tokenizer: Tokenizer, texts: Sequence[str], markers: Markers) -> Tensor:
    """Return token ids [B, 32]: `<s> [QueryMarker] … </s> <mask>…`; all of them are attended to and scored."""
    rows = []
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        row = [FIRST, markers.query, *encoding.ids[: QUERY_TOKENS - 3], LAST]
        rows.append(row + [markers.mask] * (QUERY_TOKENS - len(row)))
    return torch.tensor(rows)


def document_ids(tokenizer: Tokenizer, texts: Sequence[str], markers: Markers) -> Tensor:
    """Return token ids [N, T]: `<s> [DocumentMarker] … </s>`, truncated to 300 and padded to the longest text."""
    rows = [
        [FIRST, markers.document, *encoding.ids[: DOCUMENT_TOKENS - 3], LAST]
        for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ]
    longest = max(map(len, rows))
    return torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])


# --- model -------------------------------------------------------------------------------------------------------


class Model(nn.Module):
    """The backbone that evalkit uses, and one head per dim."""

    def __init__(self, vocabulary: int) -> None:
        """Initialise random weights. Dropout is off: the data does not repeat, so the model cannot overfit."""
        super().__init__()
        config = JinaEmbeddingsV3Config(
            vocab_size=vocabulary,
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=INTERMEDIATE,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE},
        )
        config._attn_implementation = "sdpa"  # noqa: SLF001 (no public setting without from_pretrained)
        self.backbone = JinaEmbeddingsV3Model(config)
        self.heads = nn.ModuleList(nn.Linear(HIDDEN, dim, bias=False) for dim in DIMS)

    def forward(self, ids: Tensor, attention: Tensor) -> dict[int, Tensor]:
        """Return L2-normalised vectors [texts, tokens, D] by dim."""
        hidden = self.backbone(input_ids=ids, attention_mask=attention).last_hidden_state
        return {dim: F.normalize(head(hidden), dim=-1) for dim, head in zip(DIMS, self.heads, strict=True)}


def maxsim(query_BLD: Tensor, document_NTD: Tensor, kept_NT: Tensor) -> Tensor:
    """Return scores [B, N]: the sum over query tokens of the largest product with a kept document token."""
    b, length, _ = query_BLD.shape
    similarity = query_BLD.flatten(0, 1) @ document_NTD.flatten(0, 1).T
    similarity = similarity.view(b, length, *kept_NT.shape).masked_fill(~kept_NT, -torch.inf)
    return similarity.max(dim=-1).values.sum(dim=1, dtype=torch.float32)


class Encoder(NamedTuple):
    """A model with its tokenizer, markers and the token ids that are not scored."""

    model: Model
    tokenizer: Tokenizer
    markers: Markers
    skipped: Tensor

    def queries(self, texts: Sequence[str]) -> dict[int, Tensor]:
        """Return query vectors [B, 32, D] by dim."""
        ids = query_ids(self.tokenizer, texts, self.markers)
        vectors: dict[int, Tensor] = self.model(ids, torch.ones_like(ids))
        return vectors

    def documents(self, texts: Sequence[str]) -> tuple[dict[int, Tensor], Tensor]:
        """Return document vectors [N, T, D] by dim, and which tokens are scored [N, T]."""
        ids = document_ids(self.tokenizer, texts, self.markers)
        return self.model(ids, (ids != PAD).long()), ~torch.isin(ids, self.skipped)

    def scores(self, queries: Mapping[int, Tensor], texts: Sequence[str], *, group: int = 16) -> dict[int, Tensor]:
        """Return scores [B, N] by dim; passages of similar length share a batch, to reduce padding."""
        order = sorted(range(len(texts)), key=lambda n: (len(texts[n].encode()), n))
        columns: dict[int, list[Tensor]] = {dim: [] for dim in DIMS}
        for start in range(0, len(order), group):
            vectors, kept = self.documents([texts[n] for n in order[start : start + group]])
            for dim in DIMS:
                columns[dim].append(maxsim(queries[dim], vectors[dim], kept))
        back = torch.tensor(order).argsort()
        return {dim: torch.cat(columns[dim], dim=1)[:, back] for dim in DIMS}


# --- training ----------------------------------------------------------------------------------------------------


class Example(NamedTuple):
    """A query with three passages from its region, best first."""

    query: str
    states: str
    """Grade 2: the passage states the fact."""
    related: str
    """Grade 1: the passage is about the same entity."""
    other: str
    """Grade 0: the passage is about another entity of the region, of the same kind if there is one."""


def median_lengths(corpus: DemoCorpus, *, sample: int = 3000) -> dict[Language, int]:
    """Return each language's median passage length in characters, from the first `sample` documents."""
    lengths: dict[Language, list[int]] = {language: [] for language in LANGUAGES}
    for index, document in enumerate(corpus.documents(0, sample)):
        lengths[corpus.language(index // DOCUMENTS_PER_ENTITY)].append(len(document.joined()))
    return {language: sorted(values)[len(values) // 2] for language, values in lengths.items()}


def example(corpus: DemoCorpus, region: int, draw: random.Random) -> tuple[Language, Example]:
    """Draw a fact of a region, a query language and three passages; return the passages' language and the example."""
    member = draw.randrange(ENTITIES_PER_REGION)
    attribute = draw.randrange(ATTRIBUTES_PER_KIND)
    fact = Fact(region * ENTITIES_PER_REGION + member, attribute, named=draw.random() < 0.5)
    own = asked = corpus.language(fact.entity)
    if draw.random() < CROSS_LINGUAL_SHARE:
        asked = draw.choice([other for other in LANGUAGES if other != own])
    related = draw.choice([slot for slot in range(DOCUMENTS_PER_ENTITY) if slot != attribute])
    strangers = [m for m in range(ENTITIES_PER_REGION) if m != member]
    stranger = draw.choice([m for m in strangers if KINDS[m] == KINDS[member]] or strangers)
    first, others = (e * DOCUMENTS_PER_ENTITY for e in (fact.entity, region * ENTITIES_PER_REGION + stranger))
    passages = (corpus.document(n).joined() for n in (first + attribute, first + related, others + attribute))
    return own, Example(corpus.question(fact, asked), *passages)


def examples(corpus: DemoCorpus, *, steps: int, seed: int) -> Iterator[list[Example]]:
    """Yield one batch per step. All its regions differ, so only passages of a query's own region match its names."""
    draw = random.Random(seed)
    median = median_lengths(corpus)
    for step in range(steps):
        batch: dict[int, Example] = {}
        while len(batch) < BATCH:
            # The first regions are reserved for validation.
            region = draw.randrange(VALIDATION_DOCUMENTS, TRAINING_REGIONS)
            language, drawn = example(corpus, region, draw)
            if step >= SHORT_SHARE * steps or all(len(text) <= median[language] for text in drawn[1:]):
                batch[region] = drawn
        yield list(batch.values())


def graded_loss(scores: Tensor) -> Tensor:
    """Return the contrastive loss of scores [B, 3B] (columns: all stating, all related, all other passages).

    The first term ranks the stating passage above all others. The second ranks the related passage above all but the
    stating one.
    """
    b = len(scores)
    own = torch.arange(b)
    logits = scores / TEMPERATURE
    stating = F.cross_entropy(logits, own)
    without_stating = logits.masked_fill(torch.eye(b, 3 * b, dtype=torch.bool), -torch.inf)
    return stating + RELATED_WEIGHT * F.cross_entropy(without_stating, own + b)


def learning_rate(step: int, steps: int) -> float:
    """Return the rate of a step: a linear warm-up, then a half cosine down to zero."""
    if step < WARMUP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARMUP_STEPS
    return PEAK_LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)))


def train(encoder: Encoder, *, steps: int, seed: int) -> None:
    """Train backbone and heads with in-batch contrastive loss; print loss and validation scores during training."""
    model = encoder.model
    corpus = DemoCorpus(TRAINING_REGIONS * ENTITIES_PER_REGION * DOCUMENTS_PER_ENTITY, seed, "training")
    validation = DemoSize(documents=VALIDATION_DOCUMENTS, queries=VALIDATION_QUERIES, seed=seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01)
    started = time.perf_counter()
    running = 0.0
    for step, batch in enumerate(examples(corpus, steps=steps, seed=seed)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        queries = encoder.queries([example.query for example in batch])
        passages = [*(e.states for e in batch), *(e.related for e in batch), *(e.other for e in batch)]
        scores = encoder.scores(queries, passages)
        loss = torch.stack([graded_loss(scores[dim]) for dim in DIMS]).sum()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation is missing
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        running += float(loss.detach()) / len(DIMS)
        if (step + 1) % 50 == 0:
            print(f"step {step + 1:5d}  loss {running / 50:.4f}  {time.perf_counter() - started:5.0f} s", flush=True)
            running = 0.0
        if (step + 1) % 200 == 0:
            print(f"           validation: {figures(encoder, validation, partition='training')}", flush=True)


def figures(encoder: Encoder, size: DemoSize, *, partition: Partition) -> str:
    """Score a collection by brute force and return NDCG@10 per dim and query group as one line of text."""
    task = load_demo(size, partition=partition)
    encoder.model.eval()
    documents = list(task.corpus.documents())
    with torch.no_grad():
        queries = encoder.queries([query.text for query in task.queries])
        scores = encoder.scores(queries, [document.joined() for document in documents])
    encoder.model.train()
    parts = []
    for dim in DIMS:
        best = scores[dim].topk(10, dim=1).indices.tolist()
        ranked = {query.id: [documents[n].id for n in row] for query, row in zip(task.queries, best, strict=True)}
        means = (f"{group} {mean_ndcg(ranked, task.qrels, ids):.3f}" for group, ids in task.query_groups.items())
        parts.append(f"dim {dim}: {', '.join(means)}")
    return "; ".join(parts)


def mean_ndcg(ranked: Mapping[str, Sequence[str]], qrels: Qrels, query_ids: Sequence[str]) -> float:
    """Return the mean NDCG@10 with linear gain of rankings with ten documents each."""
    total = 0.0
    for query in query_ids:
        ideal = sorted(qrels[query].values(), reverse=True)[:10]
        gained = [qrels[query].get(document, 0) for document in ranked[query]]
        total += _dcg(gained) / _dcg(ideal)
    return total / len(query_ids)


def _dcg(gains: Sequence[int]) -> float:
    return sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains))


# --- the checkpoint's files --------------------------------------------------------------------------------------


def checkpoint_tensors(model: Model) -> dict[str, Tensor]:
    """Return the backbone's tensors in bfloat16, under the Hub repository's names; q, k and v become one Wqkv."""
    own = {name: tensor.detach().to(torch.bfloat16) for name, tensor in model.backbone.state_dict().items()}
    renamed: dict[str, Tensor] = {}
    for part in ("word", "token_type"):
        renamed[f"roberta.embeddings.{part}_embeddings.weight"] = own[f"embeddings.{part}_embeddings.weight"]
    for kind in ("weight", "bias"):
        renamed[f"roberta.emb_ln.{kind}"] = own[f"embeddings.LayerNorm.{kind}"]
        renamed[f"roberta.pooler.dense.{kind}"] = own[f"pooler.dense.{kind}"]
        for layer in range(LAYERS):
            source, to = f"layers.{layer}", f"roberta.encoder.layers.{layer}"
            fused = [own[f"{source}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            renamed[f"{to}.mixer.Wqkv.{kind}"] = torch.cat(fused)
            renamed[f"{to}.mixer.out_proj.{kind}"] = own[f"{source}.self_attn.o_proj.{kind}"]
            renamed[f"{to}.norm1.{kind}"] = own[f"{source}.post_attention_layernorm.{kind}"]
            renamed[f"{to}.norm2.{kind}"] = own[f"{source}.post_mlp_layernorm.{kind}"]
            for linear in ("fc1", "fc2"):
                renamed[f"{to}.mlp.{linear}.{kind}"] = own[f"{source}.mlp.{linear}.{kind}"]
    return renamed


def save(encoder: Encoder, folder: Path) -> int:
    """Write the three repositories below `folder` and return their size in bytes."""
    backbone = checkpoint_tensors(encoder.model)
    vocabulary = encoder.tokenizer.get_vocab_size()
    own = {name: tensor.to(torch.bfloat16) for name, tensor in encoder.model.state_dict().items()}
    for position, dim in enumerate(DIMS):
        target = folder / FOLDERS[dim]
        target.mkdir(parents=True, exist_ok=True)
        head = own[f"heads.{position}.weight"]
        save_file({**backbone, "linear.weight": head}, target / "model.safetensors", metadata={"format": "pt"})
        (target / "tokenizer.json").write_text(encoder.tokenizer.to_str(), encoding="utf-8")
        for name, values in (
            ("config.json", _config(vocabulary)),
            ("artifact.metadata", _artifact_metadata(dim)),
            ("tokenizer_config.json", _tokenizer_config(encoder.markers)),
            ("special_tokens_map.json", _special_tokens()),
        ):
            (target / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return sum(file.stat().st_size for file in folder.glob("*/*"))


def _config(vocabulary: int) -> dict[str, object]:
    return {
        "architectures": ["HF_ColBERT"],
        "attention_probs_dropout_prob": 0.1,
        "bos_token_id": 0,
        "classifier_dropout": None,
        "emb_pooler": None,
        "eos_token_id": 2,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": HIDDEN,
        "initializer_range": 0.02,
        "intermediate_size": INTERMEDIATE,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": 8194,
        "model_type": "xlm-roberta",
        "num_attention_heads": HEADS,
        "num_hidden_layers": LAYERS,
        "output_past": True,
        "pad_token_id": 1,
        "position_embedding_type": "rotary",
        "rotary_emb_base": ROPE_BASE,
        "torch_dtype": "bfloat16",
        "type_vocab_size": 1,
        "use_cache": True,
        "use_flash_attn": True,
        "vocab_size": vocabulary,
    }


def _artifact_metadata(dim: int) -> dict[str, object]:
    return {
        "query_token_id": "[QueryMarker]",
        "doc_token_id": "[DocumentMarker]",
        "query_token": "[Q]",
        "doc_token": "[D]",
        "dim": dim,
        "doc_maxlen": DOCUMENT_TOKENS,
        "query_maxlen": QUERY_TOKENS,
        "mask_punctuation": True,
        "attend_to_mask_tokens": True,
        "similarity": "cosine",
    }


def _special_tokens() -> dict[str, str]:
    return {
        "bos_token": "<s>",
        "cls_token": "<s>",
        "eos_token": "</s>",
        "mask_token": "<mask>",
        "pad_token": "<pad>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
    }


def _tokenizer_config(markers: Markers) -> dict[str, object]:
    content = {0: "<s>", 1: "<pad>", 2: "</s>", 3: "<unk>"}
    content |= {markers.mask: "<mask>", markers.query: "[QueryMarker]", markers.document: "[DocumentMarker]"}
    decoder = {
        str(token): {
            "content": text,
            "lstrip": text == "<mask>",
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token, text in content.items()
    }
    return {
        "added_tokens_decoder": decoder,
        "clean_up_tokenization_spaces": False,
        **_special_tokens(),
        "model_max_length": 8194,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def main() -> None:
    """Train, save and score."""
    parser = argparse.ArgumentParser(description="Train the demo checkpoint (see the head of this file).")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "demo", help="folder for the three repositories")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seed", type=int, default=20240830)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()

    started = time.perf_counter()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    torch.use_deterministic_algorithms(mode=True)
    tokenizer = build_tokenizer()
    size = tokenizer.get_vocab_size()
    markers = Markers(mask=size - 3, query=size - 2, document=size - 1)
    # Stanford ColBERT's punctuation rule: the first token id of each encoded character, and padding.
    skipped = {tokenizer.encode(c, add_special_tokens=False).ids[0] for c in PUNCTUATION} | {PAD}
    model = Model(size)
    encoder = Encoder(model, tokenizer, markers, torch.tensor(sorted(skipped)))
    print(f"vocabulary {size}, parameters {sum(p.numel() for p in model.parameters())}")
    train(encoder, steps=arguments.steps, seed=arguments.seed)
    size_bytes = save(encoder, arguments.out)
    # Score the weights as saved, rounded to bfloat16.
    model.load_state_dict({name: tensor.to(torch.bfloat16).float() for name, tensor in model.state_dict().items()})
    print(f"evaluation: {figures(encoder, DemoSize(documents=1000, queries=200, seed=7), partition='evaluation')}")
    print(f"wrote {size_bytes / 1e6:.2f} MB below {arguments.out} in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
