"""MTEB's published bm25s figures on real XQuAD, measured again by evalkit's own BM25."""

from pathlib import Path

import pytest
from rich.console import Console
from shared_material import shared_data

from evalkit.config.compose import compose
from evalkit.run import pipeline


@pytest.mark.parametrize(("language", "ndcg"), [("en", 0.96494), ("es", 0.95169), ("ru", 0.87125), ("ar", 0.88812)])
def test_bm25s_on_xquad_equals_mteb(tmp_path: Path, language: str, ndcg: float) -> None:
    """Exact lengths, English stems and stop words in every language, as MTEB's baseline had when it was published."""
    words = ["model=bm25s", f"dataset=xquad/{language}", f"dataset.path={shared_data(f'xquad/{language}')}"]
    places = [f"results_dir={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}"]
    (cell,) = pipeline.run(compose([*words, *places]), console=Console(quiet=True))
    assert cell.metrics["ndcg@10"] == pytest.approx(ndcg, abs=1e-5)
    assert cell.environment["dataset_source"] == f"folder {language}"


@pytest.mark.parametrize(
    ("language", "own", "english"),
    [("es", 0.9608, 0.9517), ("ru", 0.9529, 0.8713), ("ar", 0.9329, 0.8881)],
)
def test_an_analyzer_of_the_language_is_worth_its_points(
    tmp_path: Path, language: str, own: float, english: float
) -> None:
    """Snowball's stemmer of the language instead of the English one, nothing else changed."""
    analyzer = {"es": "spanish", "ru": "russian", "ar": "arabic"}[language]
    words = ["model=bm25s", f"model.analyzer={analyzer}", f"dataset=xquad/{language}"]
    places = [f"results_dir={tmp_path / 'results'}", f"cache_dir={tmp_path / 'cache'}"]
    config = compose([*words, f"dataset.path={shared_data(f'xquad/{language}')}", *places])
    (cell,) = pipeline.run(config, console=Console(quiet=True))
    assert cell.metrics["ndcg@10"] == pytest.approx(own, abs=5e-3)
    assert cell.metrics["ndcg@10"] > english
