"""Every tensor accounted for, and a clear line for whatever is wrong with a checkpoint."""

import json

import pytest
import torch
from checkpoints import write_jina_checkpoint
from safetensors.torch import load_file, save_file

from evalkit.config import CheckpointSource, EncoderConfig, TextRules
from evalkit.errors import ModelError
from evalkit.models.encoder import checkpoints, load_encoders


def config_of(**folders):
    return EncoderConfig(
        name="fixture",
        kind="late_interaction",
        backbone="jina_embeddings_v3",
        checkpoints={dim.removeprefix("d"): source for dim, source in folders.items()},
        query=TextRules(max_tokens=32, marker="[QueryMarker]", expansion=True, attend_to_expansion=True),
        document=TextRules(max_tokens=300, marker="[DocumentMarker]"),
        head="linear",
        pooling="tokens",
        normalize=True,
        skiplist="stanford",
        dtype="float32",
    )


def load(folder, dim=8):
    config = config_of(**{f"d{dim}": CheckpointSource(path=str(folder))})
    return load_encoders(config, checkpoints(config, config.dims), device=torch.device("cpu"))


def changed(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_a_missing_tensor_is_named(tmp_path):
    folder = write_jina_checkpoint(tmp_path, dim=8)
    changed(folder, lambda tensors: tensors.pop("roberta.encoder.layers.1.norm2.bias"))
    with pytest.raises(ModelError, match=r"missing layers\.1\.post_mlp_layernorm\.bias"):
        load(folder)


def test_an_unexpected_tensor_is_named(tmp_path):
    folder = write_jina_checkpoint(tmp_path, dim=8)
    changed(folder, lambda tensors: tensors.update({"roberta.extra.weight": torch.ones(1)}))
    with pytest.raises(ModelError, match=r"unexpected extra\.weight"):
        load(folder)


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path):
    folder = write_jina_checkpoint(tmp_path, dim=8)
    changed(folder, lambda tensors: tensors.update({"roberta.emb_ln.bias": torch.ones(3)}))
    with pytest.raises(ModelError, match=r"embeddings\.LayerNorm\.bias is \(3,\), wanted \(32,\)"):
        load(folder)


def test_a_head_of_another_dim_is_refused_and_never_cut(tmp_path):
    folder = write_jina_checkpoint(tmp_path, dim=16)
    with pytest.raises(ModelError, match=r"linear\.weight is \(16, 32\), wanted \(8, hidden size\) for dim 8"):
        load(folder, dim=8)


def test_a_missing_head_is_refused(tmp_path):
    folder = changed(write_jina_checkpoint(tmp_path, dim=8), lambda tensors: tensors.pop("linear.weight"))
    with pytest.raises(ModelError, match=r"no linear\.weight; wanted the head of dim 8"):
        load(folder)


def test_a_weights_file_cut_short_is_refused(tmp_path):
    folder = write_jina_checkpoint(tmp_path, dim=8)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"not a whole safetensors file .* fetch the file again"):
        load(folder)


def test_a_tokenizer_without_markers_is_refused_on_loading(tmp_path):
    folder = write_jina_checkpoint(tmp_path, dim=8, markers=False)
    with pytest.raises(ModelError, match=r"no token '\[QueryMarker\]'"):
        load(folder)


def test_a_config_without_a_needed_field_is_refused(tmp_path):
    folder = write_jina_checkpoint(tmp_path, dim=8)
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del values["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json lacks num_hidden_layers"):
        load(folder)


def test_a_missing_file_is_named(tmp_path):
    folder = write_jina_checkpoint(tmp_path, dim=8)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"lacks tokenizer\.json"):
        load(folder)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ModelError, match=r"checkpoint folder .*nowhere does not exist"):
        load(tmp_path / "nowhere")


def test_the_dims_that_can_still_run_are_named(tmp_path):
    config = config_of(
        d16=CheckpointSource(path=str(write_jina_checkpoint(tmp_path / "16", dim=16))),
        d12=CheckpointSource(path=str(tmp_path / "absent")),
        d8=CheckpointSource(path=str(write_jina_checkpoint(tmp_path / "8", dim=8))),
    )
    with pytest.raises(ModelError, match=r"model 'fixture' dim 12: .* can run: dim=16,8"):
        checkpoints(config, config.dims)


def test_a_repository_that_is_not_at_hand_offline_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config = config_of(d8=CheckpointSource(repo="jinaai/jina-colbert-v2", revision="0" * 40))
    with pytest.raises(
        ModelError, match="not in the local Hugging Face cache and the hub could not be reached"
    ) as caught:
        checkpoints(config, config.dims)
    assert "\n" not in str(caught.value)
