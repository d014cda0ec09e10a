"""A card's measured rates make a forecast where no run has been made, and nothing else does."""

import dataclasses
import json

import pytest
import torch

from evalkit.config.compose import compose
from evalkit.errors import ConfigError, StoreError
from evalkit.operations import forecast, rates
from evalkit.operations.device_rates import HOST_TOKENS_PER_S, device_named, measured_rates
from evalkit.operations.forecast import Amount
from evalkit.operations.rates import UNKNOWN, Time

CARD = {"format": 1, "gpu": "NVIDIA H200", "model": "jina-colbert-v2", "tokens_per_s": 500_000}
CARD |= {"search_flop_per_s": 3.2e14, "query_vectors": 32}


def write(results, **changes):
    folder = results / "bench" / "gpu" / "nvidia-h200"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").write_text(json.dumps({**CARD, **changes}))


def test_rates_are_a_cards_and_a_models_own(tmp_path):
    assert measured_rates(tmp_path, gpu="NVIDIA H200", model="jina-colbert-v2") is None
    write(tmp_path)
    assert measured_rates(tmp_path, gpu="NVIDIA H200", model="jina-colbert-v2").tokens_per_s == 500_000
    assert measured_rates(tmp_path, gpu="NVIDIA L4", model="jina-colbert-v2") is None
    assert measured_rates(tmp_path, gpu="NVIDIA H200", model="colbertv2") is None


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"format": 2}, r"card\.json: got format 2, wanted 1; write it again"),
        ({"tokens_per_s": 0}, r"card\.json: got rates \(0\.0, .*\) and 32 query vectors, wanted positive numbers"),
        ({"query_vectors": 0}, r"card\.json: got rates \(.*\) and 0 query vectors, wanted positive numbers"),
        ({"tokens_per_s": None}, r"card\.json: not a card's rates \(TypeError: "),
    ],
)
def test_a_file_that_tells_no_rates_is_refused(tmp_path, changes, problem):
    write(tmp_path, **changes)
    with pytest.raises(StoreError, match=problem):
        measured_rates(tmp_path, gpu="NVIDIA H200", model="jina-colbert-v2")


def test_a_forecast_without_a_run_goes_by_the_cards_rates_and_says_so(tmp_path, monkeypatch):
    """10 M vectors: 20 s of encoding; 2 · 100 · 32 · 10 M · 128 operations: .0256 s of search."""
    write(tmp_path)
    monkeypatch.setattr(forecast.environment, "environment", lambda _: {"device": "NVIDIA H200", "processor": "p"})
    config = compose(["model=jina-colbert-v2", "dim=128", f"results_dir={tmp_path}"])
    dataset = dataclasses.replace(config.dataset, counts=dataclasses.replace(config.dataset.counts, queries=100))
    config = dataclasses.replace(config, dataset=dataset)
    inputs = forecast._Inputs(config, torch.device("cuda"), None, "–", None, ())
    work = forecast._CellWork(None, Amount(1e7, "counted"), forecast._finished_shards([]), 1.0, 1.0)
    found = forecast._time(inputs, 128, work, Amount(None, "unknown"))
    assert (found.encode_s, found.search_s) == (pytest.approx(20), pytest.approx(0.0256))
    assert found.basis.startswith("at 500,000 vectors/s, measured on NVIDIA H200 (")
    monkeypatch.setattr(forecast.environment, "environment", lambda _: {"device": "cpu", "processor": "p"})
    assert forecast._time(inputs, 128, work, Amount(None, "unknown")) == Time(None, None, UNKNOWN)


def test_a_named_device_is_assumed_and_says_so_until_it_was_measured(tmp_path):
    """474 TFLOP/s over 24 · 12 · 1024² · 2 operations are 785,000 tokens/s; a small model is bound by its tokenizer."""
    config = compose(["model=jina-colbert-v2", "dim=128", f"results_dir={tmp_path}"])
    device = device_named("h200")
    found = rates.of_device(device, config)
    assert (found.unit, round(found.per_s)) == ("tokens", round(474e12 / (24 * 12 * 1024**2 * 2)))
    assert found.basis.startswith("assumed for NVIDIA H200: 60 % of 790 TFLOP/s")
    assert found.basis.endswith("not measured by us")
    assert rates.of_device(device, compose(["model=colbertv2", "dim=128"])).per_s == HOST_TOKENS_PER_S
    write(tmp_path)
    assert rates.of_device(device, config).per_s == 500_000
    assert "measured on NVIDIA H200" in rates.of_device(device, config).basis
    for words in (["model=bm25"], ["model=demo", "dim=64"]):
        assert rates.of_device(device, compose(words)) == rates.UNKNOWN
    with pytest.raises(ConfigError, match="--device h2000: no rates are known for it; did you mean h200"):
        device_named("h2000")
