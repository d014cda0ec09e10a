"""A multilingual collection about invented places, people, animals and plants; each document is computed on demand.

The collection is a list of *regions*. A region has ENTITIES_PER_REGION entities, and each entity has
DOCUMENTS_PER_ENTITY consecutive documents in the region's language:

    document i → entity i // 3 → region i // 18;   slot i % 3: slots 0 and 1 state one fact each, slot 2 states none

A document depends on (seed, partition, i) only, so any range can be read without the documents before it. A *fact* is
an entity's value for one attribute of its kind. A query either names the entity and asks for the value, or describes
region and value in other words and asks for the entity.

Judgements are complete by construction: names are unique, a value occurs once per kind and region, and only an entity's
own documents state its facts. Grade 2: the passage states the fact. Grade 1: the passage is about the same entity but
does not state the fact.

A name has four syllables; one table spells it in each language's script. Training and evaluation use disjoint halves of
all names, whatever the seed, so a model trained on one half has seen no name of the other.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

from evalkit.config.settings import DemoSize
from evalkit.errors import DatasetError
from evalkit.types import Dataset, Document, Query

Partition = Literal["evaluation", "training"]
Language = Literal["en", "de", "es", "ru", "ar", "hi", "zh"]
Name = tuple[int, int, int, int]
"""Four indices into the syllable table."""

LANGUAGES: Final[tuple[Language, ...]] = ("en", "de", "es", "ru", "ar", "hi", "zh")
KINDS: Final = ("town", "person", "animal", "plant", "town", "person")
"""The kinds of a region's entities, in order; two entities of a kind never share a value."""
ENTITIES_PER_REGION: Final = len(KINDS)
DOCUMENTS_PER_ENTITY: Final = 3
DOCUMENTS_PER_REGION: Final = ENTITIES_PER_REGION * DOCUMENTS_PER_ENTITY
ATTRIBUTES_PER_KIND: Final = 2
VALUES_PER_ATTRIBUTE: Final = 6
GENERATOR_VERSION: Final = 1
"""Increase it when a code change alters any document or query, so that old fingerprints no longer match."""

_PHRASES: Final = Path(__file__).with_name("demo_phrases.toml")
"""The sentences of passages and queries, by language and kind."""

# A syllable is a consonant with a, i or u; Arabic script distinguishes no other vowels.
# One row per consonant: Latin, Cyrillic, Arabic, Devanagari, and the Chinese characters of its three syllables.
_CONSONANTS: Final = (
    "b б ب ब 巴比布",
    "ch ч تش च 查奇丘",
    "d д د द 达迪杜",
    "f ф ف फ़ 法菲富",
    "g г غ ग 加吉古",
    "h х ه ह 哈希胡",
    "j дж ج ज 贾季朱",
    "k к ك क 卡基库",
    "l л ل ल 拉利卢",
    "m м م म 马米穆",
    "n н ن न 纳尼努",
    "p п پ प 帕皮普",
    "r р ر र 喇里鲁",
    "s с س स 萨西苏",
    "sh ш ش श 沙什舒",
    "t т ت त 塔蒂图",
    "ts ц تس त्स 察茨楚",
    "v в ڤ व 瓦维武",
    "y й ي य 亚伊尤",
    "z з ز ज़ 扎齐祖",
)
SYLLABLES: Final = 3 * len(_CONSONANTS)
_NAMES_PER_REGION: Final = 1 + ENTITIES_PER_REGION
_LEFT: Final = SYLLABLES * SYLLABLES
"""Values of a name's left half: its first two syllables."""
_RIGHT: Final = SYLLABLES * SYLLABLES // 2
"""Values of a name's right half: its third syllable, and a pair of syllables of which a partition has one."""
MAX_DOCUMENTS: Final = _LEFT * _RIGHT // _NAMES_PER_REGION * DOCUMENTS_PER_REGION
"""The largest collection for which one partition has enough names: 16.6 million documents."""

_MASK: Final = (1 << 64) - 1


def _spellings() -> dict[Language, tuple[str, ...]]:
    latin, cyrillic, arabic, devanagari, chinese = zip(*(row.split() for row in _CONSONANTS), strict=True)
    russian = (c + v for c in cyrillic for v in "аиу")
    by_script: dict[Language, tuple[str, ...]] = {
        "ru": tuple({"йа": "я", "йу": "ю"}.get(syllable, syllable) for syllable in russian),
        "ar": tuple(c + v for c in arabic for v in "ايو"),
        "hi": tuple(c + v for c in devanagari for v in "ाीू"),
        "zh": tuple("".join(chinese)),
    }
    return {language: by_script.get(language, tuple(c + v for c in latin for v in "aiu")) for language in LANGUAGES}


SPELLINGS: Final[Mapping[Language, tuple[str, ...]]] = _spellings()
"""For each language, the 60 syllables in its script; the order is the same in every language."""


def spell(name: Name, language: Language, *, words: Literal[1, 2] = 1) -> str:
    """Spell a name in a language's script, as one word, or as two for people.

    >>> spell((0, 10, 29, 36), "en"), spell((0, 10, 29, 36), "ru", words=2), spell((0, 10, 29, 36), "zh")
    ('Bafimura', 'Бафи Мура', '巴菲穆喇')
    """
    table = SPELLINGS[language]
    first, second, third, fourth = (table[syllable] for syllable in name)
    parts = (first + second + third + fourth,) if words == 1 else (first + second, third + fourth)
    # str.capitalize does not change the three scripts without capitals.
    return ("·" if language == "zh" else " ").join(part.capitalize() for part in parts)


def partition_of(name: Name) -> Partition:
    """Return the half of all names that a name belongs to; the rule does not use the seed, so all collections agree."""
    return "training" if (_mix(0x7061727469, *name[:3]) + name[3]) % 2 else "evaluation"


def _mix(*values: int) -> int:
    """Hash integers to 64 bits with chained splitmix64 finalizers; the result is identical on every platform."""
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = ((state ^ value) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


@dataclass(frozen=True)
class _Attribute:
    states: tuple[str, ...]
    """Sentences of passages that state the value."""
    asks: str
    """The query that names the entity and asks for the value."""
    finds: str
    """The query that gives region and value and asks for the name."""
    values: tuple[tuple[str, str], ...]
    """Pairs (wording in passages, wording in queries)."""


@dataclass(frozen=True)
class _Kind:
    intro: tuple[str, ...]
    filler: tuple[str, ...]
    attributes: tuple[_Attribute, ...]


@dataclass(frozen=True)
class _Wording:
    general: tuple[str, ...]
    kinds: tuple[_Kind, ...]
    """One per entity of a region."""
    gap: str
    """The separator between two sentences."""


@cache
def _wordings() -> dict[Language, _Wording]:
    tables = tomllib.loads(_PHRASES.read_text(encoding="utf-8"))
    return {language: _wording(tables[language], gap="" if language == "zh" else " ") for language in LANGUAGES}


def _wording(table: dict[str, Any], *, gap: str) -> _Wording:
    kinds = {name: _kind(kind) for name, kind in table.items() if name != "general"}
    return _Wording(general=tuple(table["general"]), kinds=tuple(kinds[name] for name in KINDS), gap=gap)


def _kind(table: dict[str, Any]) -> _Kind:
    attributes = tuple(
        _Attribute(
            states=tuple(attribute["states"]),
            asks=attribute["asks"],
            finds=attribute["finds"],
            values=tuple((passage, query) for passage, query in attribute["values"]),
        )
        for name, attribute in table.items()
        if name not in ("intro", "filler")
    )
    return _Kind(intro=tuple(table["intro"]), filler=tuple(table["filler"]), attributes=attributes)


class Fact(NamedTuple):
    """A question that the collection answers: an entity, one of its attributes, and the direction of the question."""

    entity: int
    attribute: int
    named: bool
    """True: the query names the entity and asks for the value. False: it gives region and value, asks for the name."""


class _Region(NamedTuple):
    language: Language
    name: Name
    names: tuple[Name, ...]
    spelled: str
    spelled_entities: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    """For each entity of the region and each of its attributes, the index of the value."""


@dataclass(frozen=True)
class DemoCorpus:
    """The documents of a demo collection; implements `evalkit.types.Corpus` and keeps no document in memory.

    Raises DatasetError for a size for which there are not enough names.
    """

    size: int
    seed: int
    partition: Partition = "evaluation"

    def __post_init__(self) -> None:
        if not 0 < self.size <= MAX_DOCUMENTS:
            msg = f"demo documents={self.size}: there are names for 1 to {MAX_DOCUMENTS}; choose a number in that range"
            raise DatasetError(msg)

    def __len__(self) -> int:
        return self.size

    def fingerprint(self) -> str:
        """Return a hash of everything that determines the documents: version, wording, seed, partition and size."""
        wording = hashlib.sha256(_PHRASES.read_bytes()).hexdigest()
        facts = [GENERATOR_VERSION, wording, self.seed, self.partition, self.size]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def documents(self, start: int = 0, stop: int | None = None) -> Iterator[Document]:
        """Yield documents `start` to `stop` (exclusive); None or a number beyond the end means the end."""
        stop = self.size if stop is None else min(stop, self.size)
        region, number = None, -1
        for index in range(start, stop):
            if region is None or index // DOCUMENTS_PER_REGION != number:
                number = index // DOCUMENTS_PER_REGION
                region = self._region(number)
            yield self._document(region, index)

    def where(self, index: int) -> str:
        """Return the document's place for messages, numbered from 1."""
        return f"document number {index + 1}"

    def document(self, index: int) -> Document:
        """Return the document at an index."""
        return self._document(self._region(index // DOCUMENTS_PER_REGION), index)

    @property
    def entities(self) -> int:
        """The number of entities with all their documents in the collection."""
        return self.size // DOCUMENTS_PER_ENTITY

    def language(self, entity: int) -> Language:
        """Return the language of an entity's documents."""
        return self._region(entity // ENTITIES_PER_REGION).language

    def name(self, entity: int) -> Name:
        """Return an entity's name."""
        return self._region(entity // ENTITIES_PER_REGION).names[entity % ENTITIES_PER_REGION]

    def region_name(self, entity: int) -> Name:
        """Return the name of the region that an entity belongs to."""
        return self._region(entity // ENTITIES_PER_REGION).name

    def question(self, fact: Fact, language: Language) -> str:
        """Return a query that asks for a fact in a language; its wording differs from the passage's."""
        region = self._region(fact.entity // ENTITIES_PER_REGION)
        member = fact.entity % ENTITIES_PER_REGION
        attribute = _wordings()[language].kinds[member].attributes[fact.attribute]
        if fact.named:
            return attribute.asks.format(n=_spell_entity(region.names[member], member, language))
        value = attribute.values[region.values[member][fact.attribute]][1]
        return attribute.finds.format(r=spell(region.name, language), v=value)

    def judgements(self, fact: Fact) -> dict[str, int]:
        """Return the grade of every document about a fact's entity, by document id."""
        first = fact.entity * DOCUMENTS_PER_ENTITY
        return {_document_id(first + s): 2 if s == fact.attribute else 1 for s in range(DOCUMENTS_PER_ENTITY)}

    def _region(self, number: int) -> _Region:
        draw = _mix(self.seed, 1, number)
        draw, which = divmod(draw, len(LANGUAGES))
        language = LANGUAGES[which]
        names = tuple(self._name(number * _NAMES_PER_REGION + j) for j in range(_NAMES_PER_REGION))
        values: list[tuple[int, ...]] = []
        for member, kind in enumerate(KINDS):
            chosen = []
            first = KINDS.index(kind)  # the region's first entity of this kind; a second one gets other values
            for attribute in range(ATTRIBUTES_PER_KIND):
                if first == member:
                    draw, value = divmod(draw, VALUES_PER_ATTRIBUTE)
                else:
                    draw, step = divmod(draw, VALUES_PER_ATTRIBUTE - 1)
                    value = (values[first][attribute] + 1 + step) % VALUES_PER_ATTRIBUTE
                chosen.append(value)
            values.append(tuple(chosen))
        return _Region(
            language=language,
            name=names[0],
            names=names[1:],
            spelled=spell(names[0], language),
            spelled_entities=tuple(_spell_entity(name, m, language) for m, name in enumerate(names[1:])),
            values=tuple(values),
        )

    def _name(self, index: int) -> Name:
        """Return name number `index` of the partition; the mapping is a bijection (a Feistel network): no repeats."""
        left, right = index % _LEFT, index // _LEFT
        left = (left + _mix(self.seed, 2, right)) % _LEFT
        right = (right + _mix(self.seed, 3, left)) % _RIGHT
        left = (left + _mix(self.seed, 4, right)) % _LEFT
        right = (right + _mix(self.seed, 5, left)) % _RIGHT
        first, second = divmod(left, SYLLABLES)
        third, pair = divmod(right, SYLLABLES // 2)
        # The two syllables of a pair belong to different partitions.
        even: Name = (first, second, third, 2 * pair)
        return even if partition_of(even) == self.partition else (first, second, third, 2 * pair + 1)

    def _document(self, region: _Region, index: int) -> Document:
        member, slot = divmod(index % DOCUMENTS_PER_REGION, DOCUMENTS_PER_ENTITY)
        wording = _wordings()[region.language]
        kind = wording.kinds[member]
        draw = _mix(self.seed, 6, index)
        draw, titled = divmod(draw, 2)
        draw, number = divmod(draw, 87)
        draw, first_other = divmod(draw, ENTITIES_PER_REGION - 1)
        draw, length = divmod(draw, 20)
        sentences = [kind.intro[(draw & 1)]]
        lead = (draw >> 1) % 3 if length > 1 else 0
        sentences += kind.filler[:lead]
        if slot < ATTRIBUTES_PER_KIND:
            attribute = kind.attributes[slot]
            value = attribute.values[region.values[member][slot]][0]
            sentences.append(attribute.states[(draw >> 3) & 1].replace("{v}", value))
        rest = kind.filler[lead:] + wording.general
        draw, shift = divmod(draw >> 4, len(rest))
        rest = rest[shift:] + rest[:shift]
        # Of 20 passages, 2 are short, 15 have three to six more sentences, and 3 have all of them, some of these
        # repeated with other names.
        if length > 16:
            referring = tuple(sentence for sentence in wording.general if "{o}" in sentence)
            rest += referring * (1 + draw % 3)
        elif length > 1:
            rest = rest[: 3 + draw % 4]
        else:
            rest = ()
        own, own_region = region.spelled_entities[member], region.spelled
        others = region.spelled_entities[member + 1 :] + region.spelled_entities[:member]
        filled = [
            sentence.format(n=own, r=own_region, o=others[(first_other + position) % len(others)], k=12 + number)
            for position, sentence in enumerate([*sentences, *rest])
        ]
        return Document(_document_id(index), own if titled else "", wording.gap.join(filled))


def _document_id(index: int) -> str:
    return f"d{index:08d}"


def _spell_entity(name: Name, member: int, language: Language) -> str:
    return spell(name, language, words=2 if KINDS[member] == "person" else 1)


def load_demo(
    size: DemoSize, *, name: str = "demo", split: str = "test", partition: Partition = "evaluation"
) -> Dataset:
    """Generate the evaluation dataset: the corpus, queries about facts from all of it, and complete judgements.

    Half of the queries are in their documents' language, half in another. About half name the entity; the others
    describe it.

    Raises:
        DatasetError: There are more queries than complete entities, or more documents than names.

    """
    corpus = DemoCorpus(size.documents, size.seed, partition)
    if not 0 < size.queries <= corpus.entities:
        msg = (
            f"demo queries={size.queries}: {size.documents} documents allow 1 to {corpus.entities} "
            f"(one per {DOCUMENTS_PER_ENTITY} documents); ask for fewer queries or more documents"
        )
        raise DatasetError(msg)
    queries: list[Query] = []
    qrels: dict[str, dict[str, int]] = {}
    groups: dict[str, list[str]] = {"same-language": [], "cross-lingual": []}
    for number in range(size.queries):
        draw = _mix(size.seed, 7, number)
        # Split the corpus into as many equal ranges as there are queries, and draw one entity from each.
        begin, end = (n * corpus.entities // size.queries for n in (number, number + 1))
        draw, offset = divmod(draw, end - begin)
        draw, attribute = divmod(draw, ATTRIBUTES_PER_KIND)
        draw, named = divmod(draw, 2)
        fact = Fact(begin + offset, attribute, named=bool(named))
        language = corpus.language(fact.entity)
        # In each pair of queries one is cross-lingual. A draw decides which, so that it does not depend on the kind.
        group = ("same-language", "cross-lingual")[(number + _mix(size.seed, 8, number // 2)) % 2]
        if group == "cross-lingual":
            others = [other for other in LANGUAGES if other != language]
            language = others[draw % len(others)]
        query = Query(f"q{number:06d}", corpus.question(fact, language))
        queries.append(query)
        qrels[query.id] = corpus.judgements(fact)
        groups[group].append(query.id)
    return Dataset(
        name=name,
        split=split,
        language="multilingual",
        corpus=corpus,
        queries=tuple(queries),
        qrels=qrels,
        drop_self=False,
        main_metric="ndcg@10",
        query_groups={group: tuple(ids) for group, ids in groups.items()},
        source="demo",
    )
