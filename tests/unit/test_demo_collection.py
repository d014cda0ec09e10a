"""The demo collection: every document follows from its number, and the shipped checkpoint has the hub's layout."""

from __future__ import annotations

import hashlib
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

import evalkit
from evalkit.config.settings import DemoSize
from evalkit.datasets.demo import (
    DOCUMENTS_PER_ENTITY,
    DOCUMENTS_PER_REGION,
    LANGUAGES,
    MAX_DOCUMENTS,
    SPELLINGS,
    DemoCorpus,
    Fact,
    _wordings,
    load_demo,
    partition_of,
)
from evalkit.errors import DatasetError
from evalkit.types import Dataset

SIZE = DemoSize(documents=1000, queries=200, seed=7)
MODELS = Path(evalkit.__file__).parent / "models" / "demo"
FOLDERS = {128: MODELS / "demo-colbert", 96: MODELS / "demo-colbert-96", 64: MODELS / "demo-colbert-64"}
HUB_FILES = {
    "artifact.metadata",
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module")
def task() -> Dataset:
    return load_demo(SIZE)


# --- the collection ----------------------------------------------------------------------------------------------


def test_two_processes_write_the_same_documents() -> None:
    """Python's hash seed differs between processes; the collection must not."""
    code = (
        "import hashlib; from evalkit.datasets.demo import DemoCorpus;"
        "print(hashlib.sha256(repr(list(DemoCorpus(300, 7).documents())).encode()).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = hashlib.sha256(repr(list(DemoCorpus(300, 7).documents())).encode()).hexdigest()
    assert run.stdout.strip() == here


def test_another_seed_writes_other_documents_and_another_fingerprint() -> None:
    first, second = DemoCorpus(100, 1), DemoCorpus(100, 2)
    assert list(first.documents()) != list(second.documents())
    assert len({first.fingerprint(), second.fingerprint(), DemoCorpus(100, 1, "training").fingerprint()}) == 3
    assert first.fingerprint() == DemoCorpus(100, 1).fingerprint()


@pytest.mark.parametrize(("start", "stop"), [(0, 5), (17, 19), (50, 50), (90, 100), (95, 400), (0, None), (33, None)])
def test_reading_a_range_equals_slicing_the_whole(start: int, stop: int | None) -> None:
    corpus = DemoCorpus(100, 3)
    assert list(corpus.documents(start, stop)) == list(corpus.documents())[start:stop]


def test_a_document_does_not_depend_on_the_size_of_the_corpus() -> None:
    assert next(DemoCorpus(100, 3).documents(42)) == next(DemoCorpus(5_000_000, 3).documents(42))


def made_documents(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the number of every document that is made from here on."""
    made: list[int] = []
    make = DemoCorpus._document
    monkeypatch.setattr(DemoCorpus, "_document", lambda self, *of: (made.append(of[-1]), make(self, *of))[1])
    return made


def test_the_end_of_a_million_documents_is_read_without_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_documents(monkeypatch)
    last = list(DemoCorpus(1_000_000, 3).documents(999_990))
    assert [document.id for document in last] == [f"d{n:08d}" for n in range(999_990, 1_000_000)]
    assert made == list(range(999_990, 1_000_000))


def test_a_task_of_a_million_documents_is_made_without_reading_them(monkeypatch: pytest.MonkeyPatch) -> None:
    made = made_documents(monkeypatch)
    task = load_demo(DemoSize(documents=1_000_000, queries=200, seed=1))
    assert made == []
    numbers = sorted(int(document[1:]) for judged in task.qrels.values() for document in judged)
    assert numbers[0] < 10_000
    assert numbers[-1] > 990_000


def test_document_ids_are_unique(task: Dataset) -> None:
    assert len({document.id for document in task.corpus.documents()}) == SIZE.documents


def test_no_name_occurs_twice_in_a_collection() -> None:
    corpus = DemoCorpus(18_000, 5)
    names = [corpus.name(entity) for entity in range(corpus.entities)]
    names += [corpus.region_name(entity) for entity in range(0, corpus.entities, 6)]
    assert len(set(names)) == len(names) == 7000


def test_training_and_evaluation_share_no_name_whatever_their_seeds() -> None:
    for seed in (1, 2):
        for partition in ("evaluation", "training"):
            corpus = DemoCorpus(9_000, seed, partition)
            names = [corpus.name(entity) for entity in range(corpus.entities)]
            names += [corpus.region_name(entity) for entity in range(corpus.entities)]
            assert {partition_of(name) for name in names} == {partition}


def test_every_script_spells_sixty_different_syllables() -> None:
    assert [len(set(SPELLINGS[language])) for language in LANGUAGES] == [60] * len(LANGUAGES)


def test_all_languages_write_documents_and_queries(task: Dataset) -> None:
    """1,000 documents are 55 regions of one language each; every script shows in documents and queries."""
    corpus = task.corpus
    assert isinstance(corpus, DemoCorpus)
    assert {corpus.language(entity) for entity in range(corpus.entities)} == set(LANGUAGES)
    scripts = {"Latin": "aeiou", "Cyrillic": "аеио", "Arabic": "اليو", "Devanagari": "ािक", "Chinese": "的是哪么"}
    for texts in ([document.text for document in corpus.documents()], [query.text for query in task.queries]):
        for script, letters in scripts.items():
            assert any(letter in text for text in texts for letter in letters), script


def test_passages_vary_in_length(task: Dataset) -> None:
    words = sorted(len(document.text.split()) for document in task.corpus.documents() if document.text.isascii())
    assert words[0] <= 20
    assert 30 <= words[len(words) // 2] <= 80
    assert words[-1] >= 130


# --- the judgements ----------------------------------------------------------------------------------------------


def test_every_judged_document_exists(task: Dataset) -> None:
    known = {document.id for document in task.corpus.documents()}
    assert {document for judged in task.qrels.values() for document in judged} <= known


def test_every_query_has_one_stating_passage_and_two_related_ones(task: Dataset) -> None:
    assert list(task.qrels) == [query.id for query in task.queries]
    assert {tuple(sorted(judged.values())) for judged in task.qrels.values()} == {(1, 1, 2)}


def test_grade_two_states_the_value_and_grade_one_does_not() -> None:
    """Read in the texts themselves: of an entity's passages only the one with grade 2 contains the value's wording."""
    corpus = DemoCorpus(60 * DOCUMENTS_PER_REGION, 9)
    texts = {document.id: document.joined() for document in corpus.documents()}
    for entity, attribute in itertools.product(range(corpus.entities), range(2)):
        region, member = corpus._region(entity // 6), entity % 6
        kind = _wordings()[region.language].kinds[member]
        wording = kind.attributes[attribute].values[region.values[member][attribute]][0]
        for document, grade in corpus.judgements(Fact(entity, attribute, named=True)).items():
            assert region.spelled_entities[member] in texts[document]
            assert region.spelled in texts[document]
            assert (wording in texts[document]) == (grade == 2), (wording, texts[document])


def test_a_passage_that_is_not_judged_only_refers_to_the_entity() -> None:
    """Another entity's passage names it at most in a cross-reference, which states nothing about it."""
    corpus = DemoCorpus(60 * DOCUMENTS_PER_REGION, 9)
    for number, document in enumerate(corpus.documents()):
        region, member = corpus._region(number // DOCUMENTS_PER_REGION), number // DOCUMENTS_PER_ENTITY % 6
        text = document.joined()
        for other, name in enumerate(region.spelled_entities):
            if other != member:
                for sentence in _wordings()[region.language].general:
                    text = text.replace(sentence.replace("{o}", name), "")
                assert name not in text


def test_a_value_answers_for_one_entity_of_its_kind_in_a_region() -> None:
    """Two towns (or two people) of a region never share a value, so a described entity is the only one meant."""
    corpus = DemoCorpus(40 * DOCUMENTS_PER_REGION, 11)
    for region in range(40):
        values = corpus._region(region).values
        for twin, other in ((0, 4), (1, 5)):
            assert all(a != b for a, b in zip(values[twin], values[other], strict=True))


def test_query_groups_are_halves_and_say_which_language_is_asked(task: Dataset) -> None:
    same, cross = task.query_groups["same-language"], task.query_groups["cross-lingual"]
    assert len(same) == len(cross) == SIZE.queries // 2
    assert not set(same) & set(cross)
    documents = {document.id: document for document in task.corpus.documents()}
    texts = {query.id: query.text for query in task.queries}

    def script(text: str) -> str:
        bounds = (("zh", "\u4e00", "\u9fff"), ("hi", "\u0900", "\u097f"), ("ar", "\u0600", "\u06ff"), ("ru", "А", "я"))
        return next((name for name, low, high in bounds if any(low <= c <= high for c in text)), "latin")

    asked = {query: {script(documents[document].text) for document in task.qrels[query]} for query in texts}
    assert all({script(texts[query])} == asked[query] for query in same)
    assert sum({script(texts[query])} != asked[query] for query in cross) > len(cross) / 2


def test_queries_contain_no_digits_that_bm25_could_match(task: Dataset) -> None:
    assert not any(character.isdigit() for query in task.queries for character in query.text)


def test_more_queries_than_entities_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"demo queries=31: 90 documents allow 1 to 30 .* ask for fewer queries"):
        load_demo(DemoSize(documents=90, queries=31, seed=1))


def test_more_documents_than_names_is_refused() -> None:
    with pytest.raises(DatasetError, match=rf"there are names for 1 to {MAX_DOCUMENTS}; choose a number in that range"):
        DemoCorpus(MAX_DOCUMENTS + 1, 1)


# --- the shipped checkpoint --------------------------------------------------------------------------------------


def test_the_three_repositories_hold_the_hubs_files_within_six_megabytes() -> None:
    files = [file for folder in FOLDERS.values() for file in folder.iterdir()]
    assert all({file.name for file in folder.iterdir()} == HUB_FILES for folder in FOLDERS.values())
    assert sum(file.stat().st_size for file in files) <= 6_000_000


def test_checkpoint_keys_shapes_and_dtypes_are_the_hubs() -> None:
    for dim, folder in FOLDERS.items():
        config = json.loads((folder / "config.json").read_text())
        hidden, inner, layers = (config[k] for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
        shapes: dict[str, tuple[int, ...]] = {
            "roberta.embeddings.word_embeddings.weight": (config["vocab_size"], hidden),
            "roberta.embeddings.token_type_embeddings.weight": (1, hidden),
            "roberta.emb_ln.weight": (hidden,),
            "roberta.emb_ln.bias": (hidden,),
            "roberta.pooler.dense.weight": (hidden, hidden),
            "roberta.pooler.dense.bias": (hidden,),
            "linear.weight": (dim, hidden),
        }
        linears = {"mixer.Wqkv": (3 * hidden, hidden), "mixer.out_proj": (hidden, hidden)}
        linears |= {"mlp.fc1": (inner, hidden), "mlp.fc2": (hidden, inner)}
        for layer, (name, shape) in itertools.product(range(layers), linears.items()):
            shapes[f"roberta.encoder.layers.{layer}.{name}.weight"] = shape
            shapes[f"roberta.encoder.layers.{layer}.{name}.bias"] = shape[:1]
        for layer, norm, kind in itertools.product(range(layers), ("norm1", "norm2"), ("weight", "bias")):
            shapes[f"roberta.encoder.layers.{layer}.{norm}.{kind}"] = (hidden,)
        tensors = load_file(folder / "model.safetensors")
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == shapes
        assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_backbones_are_identical_and_heads_are_no_prefixes_of_one_another() -> None:
    tensors = {dim: load_file(folder / "model.safetensors") for dim, folder in FOLDERS.items()}
    for dim in (96, 64):
        assert tensors[dim].keys() == tensors[128].keys()
        for name in tensors[128].keys() - {"linear.weight"}:
            assert torch.equal(tensors[dim][name], tensors[128][name]), name
        assert not torch.equal(tensors[dim]["linear.weight"], tensors[128]["linear.weight"][:dim])


def test_tokenizer_has_xlm_r_s_specials_and_the_markers_last() -> None:
    for folder in FOLDERS.values():
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        size = json.loads((folder / "config.json").read_text())["vocab_size"]
        assert tokenizer.get_vocab_size() == size
        specials = ("<s>", "<pad>", "</s>", "<unk>", ".", "<mask>", "[QueryMarker]", "[DocumentMarker]")
        assert [tokenizer.token_to_id(token) for token in specials] == [0, 1, 2, 3, 5, size - 3, size - 2, size - 1]


def test_tokenizer_cuts_a_name_into_its_syllables_in_every_script() -> None:
    tokenizer = Tokenizer.from_file(str(FOLDERS[128] / "tokenizer.json"))
    for text in ("Bafimura", "Бафимура", "بافيمورا", "बाफ़ीमूरा", "巴菲穆喇"):
        assert len(tokenizer.encode(text, add_special_tokens=False)) == 4


def test_tokenizer_knows_every_character_of_the_collection(task: Dataset) -> None:
    tokenizer = Tokenizer.from_file(str(FOLDERS[128] / "tokenizer.json"))
    texts = [document.joined() for document in task.corpus.documents()] + [query.text for query in task.queries]
    assert not any(3 in encoding.ids for encoding in tokenizer.encode_batch(texts))


def test_queries_fit_into_the_query_length(task: Dataset) -> None:
    """A cut query would ask for less than its judgements assume: 32 ids less three for <s>, marker and </s>."""
    tokenizer = Tokenizer.from_file(str(FOLDERS[128] / "tokenizer.json"))
    encodings = tokenizer.encode_batch([query.text for query in task.queries], add_special_tokens=False)
    assert max(map(len, encodings)) <= 29


def test_transformers_loads_the_tokenizer_unchanged() -> None:
    from transformers import AutoTokenizer

    text = "Was frisst der Bafimura? 巴菲穆喇吃什么？"
    for folder in FOLDERS.values():
        own = Tokenizer.from_file(str(folder / "tokenizer.json"))
        loaded = AutoTokenizer.from_pretrained(str(folder))
        assert loaded(text)["input_ids"] == own.encode(text).ids
        assert (loaded.pad_token_id, loaded.mask_token_id) == (1, own.token_to_id("<mask>"))


def test_artifact_metadata_says_how_texts_are_encoded() -> None:
    for dim, folder in FOLDERS.items():
        metadata = json.loads((folder / "artifact.metadata").read_text())
        wanted = {
            "dim": dim,
            "query_maxlen": 32,
            "doc_maxlen": 300,
            "mask_punctuation": True,
            "attend_to_mask_tokens": True,
            "similarity": "cosine",
            "query_token_id": "[QueryMarker]",
            "doc_token_id": "[DocumentMarker]",
        }
        assert {key: metadata[key] for key in wanted} == wanted
