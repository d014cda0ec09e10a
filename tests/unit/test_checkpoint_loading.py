"""Every tensor accounted for, and a clear line for whatever is wrong with a checkpoint."""

import hashlib
import json

import pytest
import torch
from checkpoints import (
    CLIP_HIDDEN,
    REVISION,
    publish,
    write_colbert_xm,
    write_colbertv2,
    write_jina_checkpoint,
    write_jina_clip,
    write_mdpr,
    write_qk_norm,
)
from safetensors.torch import load_file, save_file

from evalkit.config.compose import compose
from evalkit.config.settings import CheckpointSource, EncoderConfig, TextRules
from evalkit.errors import ConfigError, ModelError
from evalkit.models import tokens
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
    with pytest.raises(
        ModelError, match=r"linear\.weight is \(16, 32\) of float32, wanted \(8, hidden size\) of floats"
    ):
        load(folder, dim=8)


def test_a_head_for_another_hidden_size_is_refused_with_both_shapes(tmp_path):
    folder = write_jina_checkpoint(tmp_path, dim=8)
    changed(folder, lambda tensors: tensors.update({"linear.weight": torch.ones(8, 31)}))
    with pytest.raises(ModelError, match=r"linear\.weight is \(8, 31\), wanted \(8, 32\) for dim 8"):
        load(folder)


@pytest.mark.parametrize("name", ["linear.weight", "roberta.emb_ln.bias"])
def test_quantised_weights_are_refused_because_their_scales_would_be_lost(tmp_path, name):
    folder = write_jina_checkpoint(tmp_path, dim=8)
    changed(folder, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    with pytest.raises(ModelError, match=r"int8, wanted .*float"):
        load(folder)


def test_fused_rows_that_are_no_three_equal_parts_are_misshapen(tmp_path):
    folder = write_jina_checkpoint(tmp_path, dim=8)
    name = "roberta.encoder.layers.0.mixer.Wqkv.weight"
    changed(folder, lambda tensors: tensors.update({name: torch.ones(95, 32)}))
    with pytest.raises(
        ModelError, match=r"mis-shaped layers\.0\.mixer\.Wqkv\.weight is \(95, 32\), wanted three equal"
    ):
        load(folder)


def test_a_head_is_unexpected_where_the_config_says_that_there_is_none(tmp_path):
    write_colbertv2(tmp_path, dim=24)
    with pytest.raises(ModelError, match=r"unexpected linear\.weight; wanted no head, as model\.head=none says"):
        load_as("mdpr", tmp_path, 24)


def rewritten(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": "two"}, "num_hidden_layers 'two', wanted whole numbers from 1 to"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000, wanted whole numbers from 1 to"),
        ({"num_hidden_layers": 1001}, "num_hidden_layers 1001, wanted 1000 layers at most"),
        ({"hidden_size": 0}, "hidden_size 0, wanted whole numbers from 1 to"),
        (
            {"num_attention_heads": 5},
            "hidden_size 32 and num_attention_heads 5, wanted a multiple of the number of heads",
        ),
        ({"pad_token_id": "1"}, "pad_token_id '1', wanted ids of the vocabulary; fetch the file again"),
        ({"bos_token_id": 0.5, "eos_token_id": None}, "bos_token_id 0.5, eos_token_id None, wanted ids of the"),
        ({"pad_token_id": 99}, "pad_token_id 99, wanted ids of the vocabulary"),
        ({"layer_norm_eps": "1e-5"}, "layer_norm_eps '1e-5', wanted numbers above 0; fetch the file again"),
        ({"layer_norm_eps": True}, "layer_norm_eps True, wanted numbers above 0"),
        ({"rotary_emb_base": None}, "rotary_emb_base None, wanted a number above 0"),
        ({"rotary_emb_base": -1}, "rotary_emb_base -1, wanted a number above 0"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new', wanted 'gelu' for .*; this is another architecture"),
        ({"position_embedding_type": "absolute"}, "position_embedding_type 'absolute', wanted 'rotary'"),
        ({"rotary_emb_interleaved": True}, "rotary_emb_interleaved True, wanted False"),
        ({"rotary_emb_scale_base": 512.0}, "rotary_emb_scale_base 512.0, wanted None"),
    ],
)
def test_a_config_that_the_native_class_does_not_compute_is_refused(tmp_path, values, message):
    folder = rewritten(write_jina_checkpoint(tmp_path, dim=8), **values)
    with pytest.raises(ModelError, match=f"config.json has {message}"):
        load(folder)


def test_a_config_with_nan_is_not_json(tmp_path):
    folder = rewritten(write_jina_checkpoint(tmp_path, dim=8), rotary_emb_base=float("nan"))
    with pytest.raises(ModelError, match=r"config\.json: not JSON \(got NaN, wanted a finite number\)"):
        load(folder)


def test_a_bert_with_relative_positions_or_an_unknown_activation_is_refused(tmp_path):
    folder = rewritten(write_colbertv2(tmp_path, dim=16), position_embedding_type="relative_key")
    with pytest.raises(ModelError, match="position_embedding_type 'relative_key', wanted 'absolute'"):
        load_as("colbertv2", folder, 16)
    rewritten(folder, position_embedding_type="absolute", hidden_act="shrug")
    with pytest.raises(ModelError, match=r"hidden_act 'shrug', wanted one that transformers knows: .*gelu"):
        load_as("colbertv2", folder, 16)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pre_norm": "no"}, "pre_norm 'no', wanted true or false"),
        ({"adapter_reduction_factor": None}, "adapter_reduction_factor None, wanted numbers above 0"),
        ({"languages": 2}, "languages 2, wanted a list"),
    ],
)
def test_an_xmod_config_with_values_of_another_kind_is_refused(tmp_path, values, message):
    write_colbert_xm(tmp_path, dim=16)
    rewritten(tmp_path, **values)
    with pytest.raises(ModelError, match=f"config.json has {message}"):
        load_as("colbert-xm", tmp_path, 16, "model.adapter=en_XX")


def test_texts_longer_than_the_learned_positions_are_refused_on_loading(tmp_path):
    (tmp_path / "bert").mkdir()
    write_colbertv2(tmp_path / "bert", dim=16)
    with pytest.raises(ModelError, match=r"model\.document\.max_tokens=401, but the model has 400 positions"):
        load_as("colbertv2", tmp_path / "bert", 16, "model.document.max_tokens=401")
    (tmp_path / "xmod").mkdir()
    write_colbert_xm(tmp_path / "xmod", dim=16)
    with pytest.raises(ModelError, match=r"model\.query\.max_tokens=399, but the model has 398 positions"):
        load_as("colbert-xm", tmp_path / "xmod", 16, "model.query.max_tokens=399", "model.adapter=en_XX")
    load_as("colbert-xm", tmp_path / "xmod", 16, "model.query.max_tokens=398", "model.adapter=en_XX")


def test_a_rope_base_that_is_no_base_is_refused_at_the_door():
    with pytest.raises(ConfigError, match=r"model\.rope_theta=-1\.0: wanted checkpoint or a number above 0"):
        compose(["model=demo", "model.rope_theta=-1"])


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
    with pytest.raises(ModelError, match=r"model fixture:12: .* can run: dim=16,8"):
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


def load_as(name, folder, dim, *overrides):
    """Load a folder under the config of a system, at the fixture's own dim."""
    model = compose([f"model={name}", *overrides]).model
    model = type(model)(**{**vars(model), "checkpoints": {str(dim): CheckpointSource(path=str(folder))}})
    return load_encoders(model, checkpoints(model, model.dims), device=torch.device("cpu"))


def test_pickled_weights_are_read_only_when_allowed(tmp_path):
    write_mdpr(tmp_path)
    with pytest.raises(ModelError, match=r"has pytorch_model\.bin only, .* set model\.allow_pickle=true"):
        load_as("mdpr", tmp_path, 24)
    (encoder,) = load_as("mdpr", tmp_path, 24, "model.allow_pickle=true")
    assert tuple(encoder.heads) == (24,)


class Trap:
    """A pickled object that would write a file if its code were run on reading."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_code_in_pickled_weights_is_never_run(tmp_path):
    write_mdpr(tmp_path)
    torch.save({"a": torch.ones(1), "b": Trap(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="not a whole file of tensors") as caught:
        load_as("mdpr", tmp_path, 24, "model.allow_pickle=true")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_cut_short_are_refused(tmp_path):
    write_mdpr(tmp_path)
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError, match="not a whole file of tensors"):
        load_as("mdpr", tmp_path, 24, "model.allow_pickle=true")


@pytest.mark.parametrize("content", [b"", b"\x80", b"PK\x03\x04", b"not a pickle"])
def test_weights_that_are_no_pickle_are_refused_in_one_line(tmp_path, content):
    write_mdpr(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(content)
    with pytest.raises(ModelError, match="not a whole file of tensors") as caught:
        load_as("mdpr", tmp_path, 24, "model.allow_pickle=true")
    assert "\n" not in str(caught.value)


def test_a_tokenizer_that_lacks_its_unknown_token_is_refused_in_one_line(tmp_path):
    """It loads, and fails at the first word that it does not know; as a panic of Rust where it has no such token."""
    write_colbertv2(tmp_path, dim=16)
    path = tmp_path / "tokenizer.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    del values["model"]["vocab"]["[UNK]"]
    values["added_tokens"] = [token for token in values["added_tokens"] if token["content"] != "[UNK]"]
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer\.json: not a tokenizer file \(.*UNK.*\); fetch the file again"):
        load_as("colbertv2", tmp_path, 16)


def test_a_panic_of_rust_is_an_error_like_any_other_and_an_interrupt_is_none():
    class PanicException(BaseException):
        pass

    assert tokens._rust_error(PanicException())
    assert not tokens._rust_error(KeyboardInterrupt())


def test_pickled_values_that_are_no_tensors_are_refused(tmp_path):
    write_mdpr(tmp_path)
    torch.save({"a": 1}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="got more than named tensors, wanted a state dict"):
        load_as("mdpr", tmp_path, 24, "model.allow_pickle=true")


def test_safetensors_are_taken_where_both_formats_are_there(tmp_path):
    write_colbertv2(tmp_path, dim=16)
    torch.save({}, tmp_path / "pytorch_model.bin")
    (encoder,) = load_as("colbertv2", tmp_path, 16, "model.allow_pickle=true")
    assert tuple(encoder.heads) == (16,)


def test_another_architecture_is_refused_by_name(tmp_path):
    write_colbertv2(tmp_path, dim=16)
    with pytest.raises(ModelError, match=r"has model_type 'bert', wanted xlm-roberta or jina_embeddings_v3"):
        load_as("jina-colbert-v2", tmp_path, 16)


def test_a_backbone_that_nobody_knows_is_refused_with_the_valid_ones():
    with pytest.raises(ConfigError, match=r"model\.backbone='mamba' unknown; valid: bert, jina_bert"):
        compose(["model=jina-colbert-v2", "model.backbone=mamba"])


def test_a_jina_bert_without_alibi_is_another_architecture(tmp_path):
    write_colbertv2(tmp_path, dim=16)
    with pytest.raises(ModelError, match="position_embedding_type None, wanted 'alibi'"):
        load_as("jina-colbert-v1-en", tmp_path, 16)


def test_a_rope_base_for_a_model_without_rope_is_refused(tmp_path):
    write_colbertv2(tmp_path, dim=16)
    with pytest.raises(ModelError, match=r"rope_theta=20000\.0 for bert, which has no RoPE"):
        load_as("colbertv2", tmp_path, 16, "model.rope_theta=20000")


def test_a_setting_without_effect_on_the_model_is_refused(tmp_path):
    """Its vectors would be those without the setting, under a run id and a config that name it."""
    write_colbertv2(tmp_path, dim=16)
    with pytest.raises(
        ModelError, match=r"adapter=de_DE for bert, which has no language adapters; leave model\.adapter"
    ):
        load_as("colbertv2", tmp_path, 16, "model.adapter=de_DE")
    with pytest.raises(ModelError, match=r"skiplist=stanford for pooling mean, .*; set model\.skiplist=none"):
        load_as("colbertv2", tmp_path, 16, "model.pooling=mean")


def test_a_language_without_an_adapter_is_refused_with_those_there_are(tmp_path):
    write_colbert_xm(tmp_path, dim=16)
    with pytest.raises(ModelError, match=r"no language adapter 'fr_XX'; .* one of en_XX, de_DE"):
        load_as("colbert-xm", tmp_path, 16, "model.adapter=fr_XX")
    with pytest.raises(ConfigError, match="no adapter for language 'yo'"):
        compose(["model=colbert-xm", "dataset=miracl/yo"])


def test_an_adapter_of_a_language_that_the_config_does_not_name_is_unexpected(tmp_path):
    folder = write_colbert_xm(tmp_path, dim=16)
    extra = {"roberta.encoder.layer.0.output.adapter_modules.xx_XX.dense1.bias": torch.ones(12)}
    changed(folder, lambda tensors: tensors.update(extra))
    with pytest.raises(ModelError, match=r"unexpected .*adapter_modules\.xx_XX\.dense1\.bias"):
        load_as("colbert-xm", folder, 16, "model.adapter=en_XX")


def test_lengths_follow_the_dataset_and_an_explicit_one_wins():
    lengths = {
        name: (model.query.max_tokens, model.document.max_tokens)
        for name in ("beir/arguana", "beir/climate-fever", "beir/fiqa", "msmarco/dev-small")
        for model in [compose(["model=colbertv2", f"dataset={name}"]).model]
    }
    assert lengths == {
        "beir/arguana": (300, 300),
        "beir/climate-fever": (64, 300),
        "beir/fiqa": (32, 300),
        "msmarco/dev-small": (32, 180),
    }
    explicit = compose(["model=colbertv2", "dataset=beir/arguana", "model.query.max_tokens=40"]).model
    assert explicit.query.max_tokens == 40


def test_lengths_per_dataset_need_a_default():
    with pytest.raises(ConfigError, match="wanted a `default` too, for all others"):
        compose(["model=demo", "model.query.max_tokens={beir/fiqa: 12}"])


def test_a_revision_that_is_absent_offline_is_one_clear_line_though_another_is_there(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    publish(tmp_path, "o/n", lambda folder: write_jina_checkpoint(folder, dim=8))
    there = config_of(d8=CheckpointSource(repo="o/n", revision=REVISION))
    assert checkpoints(there, there.dims)[8].revision == REVISION
    absent = config_of(d8=CheckpointSource(repo="o/n", revision="f" * 40))
    with pytest.raises(ModelError, match=f"o/n@{'f' * 40}: not in the local Hugging Face cache") as caught:
        checkpoints(absent, absent.dims)
    assert "\n" not in str(caught.value)


def test_a_branch_name_resolves_to_the_commit_that_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    publish(tmp_path, "o/n", lambda folder: write_jina_checkpoint(folder, dim=8))
    unpinned = config_of(d8=CheckpointSource(repo="o/n"))
    assert checkpoints(unpinned, unpinned.dims)[8].revision == REVISION


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_bit_that_flipped_in_the_cache_is_found_by_the_blobs_own_name(tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = publish(tmp_path, "o/n", lambda folder: write_jina_checkpoint(folder, dim=8))
    config = config_of(d8=CheckpointSource(repo="o/n", revision=REVISION))
    sound = checkpoints(config, config.dims)[8].checksums
    blob = (snapshot / name).resolve()
    if name == "config.json":  # small files are named by git's address
        content = blob.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        (snapshot / name).unlink()
        blob = blob.rename(blob.with_name(git))
        (snapshot / name).symlink_to(blob)
        assert checkpoints(config, config.dims)[8].checksums == sound
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(ModelError, match=rf"{name}: got content .*, wanted {blob.name}.*: delete {blob} and fetch it"):
        checkpoints(config, config.dims)


def test_a_download_cut_short_is_refused_by_the_missing_file(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = publish(tmp_path, "o/n", lambda folder: write_jina_checkpoint(folder, dim=8))
    (snapshot / "model.safetensors").unlink()
    config = config_of(d8=CheckpointSource(repo="o/n", revision=REVISION))
    with pytest.raises(ModelError, match=r"checkpoint o/n lacks model\.safetensors"):
        checkpoints(config, config.dims)


@pytest.mark.parametrize("text_config", [{"pooler_type": "cls_pooler"}, {"proj_type": "linear"}])
def test_a_text_tower_that_does_more_than_the_mean_is_another_architecture(tmp_path, text_config):
    write_jina_clip(tmp_path, **text_config)
    with pytest.raises(ModelError, match=r"for the text tower, wanted mean_pooler and no projection"):
        load_as("jina-clip-v1", tmp_path, CLIP_HIDDEN)


def test_a_clip_checkpoint_without_the_text_tower_is_refused(tmp_path):
    write_jina_clip(tmp_path)
    changed(tmp_path, lambda tensors: tensors.pop("text_model.transformer.embeddings.word_embeddings.weight"))
    with pytest.raises(ModelError, match=r"has no text_model\.transformer\.… for 'embeddings\.word_embeddings"):
        load_as("jina-clip-v1", tmp_path, CLIP_HIDDEN)


def test_a_projection_beside_the_text_tower_is_unexpected(tmp_path):
    write_jina_clip(tmp_path)
    changed(tmp_path, lambda tensors: tensors.update({"text_model.proj.weight": torch.ones(1)}))
    with pytest.raises(ModelError, match=r"unexpected text_model\.proj\.weight"):
        load_as("jina-clip-v1", tmp_path, CLIP_HIDDEN)


def test_normalised_queries_and_keys_must_be_in_every_layer(tmp_path):
    write_qk_norm(tmp_path, outer_norms=True)
    changed(tmp_path, lambda tensors: tensors.pop("bert.encoder.layer.1.attention.self.layer_norm_k.bias"))
    with pytest.raises(ModelError, match=r"missing encoder\.layer\.1\.attention\.self\.layer_norm_k\.bias"):
        load_as("jina-embeddings-v2-base-es", tmp_path, 24)
