"""The model that stays loaded from one cell to the next: the very same object, until another one is asked for."""

import torch
from rich.console import Console

from evalkit.config.compose import compose
from evalkit.models.encoder import checkpoints
from evalkit.run import loaded, pipeline

CPU = torch.device("cpu")
ENGINE = compose([]).engine


def model_at(*dims):
    model = compose([f"dim=[{','.join(map(str, dims))}]"]).model
    return model, checkpoints(model, dims)


def test_the_same_model_is_not_loaded_again(monkeypatch):
    monkeypatch.setattr(loaded, "_held", [])
    (first,) = loaded.encoders(*model_at(64), device=CPU, engine=ENGINE)
    (second,) = loaded.encoders(*model_at(64), device=CPU, engine=ENGINE)
    assert second.encoder is first.encoder


def test_other_dims_are_loaded_and_take_the_place_of_the_first(monkeypatch):
    monkeypatch.setattr(loaded, "_held", [])
    (first,) = loaded.encoders(*model_at(64), device=CPU, engine=ENGINE)
    (other,) = loaded.encoders(*model_at(128), device=CPU, engine=ENGINE)
    assert list(other.encoder.heads) == [128]
    assert len(loaded._held) == 1
    (again,) = loaded.encoders(*model_at(64), device=CPU, engine=ENGINE)
    assert again.encoder is not first.encoder


def test_nothing_is_kept_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(loaded, "_held", None)
    (first,) = loaded.encoders(*model_at(64), device=CPU, engine=ENGINE)
    (second,) = loaded.encoders(*model_at(64), device=CPU, engine=ENGINE)
    assert second.encoder is not first.encoder
    assert loaded._held is None


def test_a_sweep_over_datasets_reads_the_weights_once(tmp_path, monkeypatch):
    read = []
    real = loaded.load_encoders
    monkeypatch.setattr(loaded, "_held", [])
    monkeypatch.setattr(loaded, "load_encoders", lambda *args, **options: read.append(1) or real(*args, **options))
    runs = set()
    for seed in (1, 2):
        words = ["dim=64", "dataset.demo.documents=40", "dataset.demo.queries=6", f"dataset.demo.seed={seed}"]
        places = [f"results_dir={tmp_path}/results", f"cache_dir={tmp_path}/cache"]
        (cell,) = pipeline.run(compose([*words, *places]), console=Console(quiet=True))
        runs.add(cell.run_id)
    assert len(runs) == 2
    assert read == [1]
