"""`backbone: transformers` against transformers' own forward pass, on small random checkpoints that it saved itself."""

import json

import pytest
import torch
from checkpoints import write_bert_tokenizer, write_xlmr_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors
from transformers import CONFIG_MAPPING, MODEL_MAPPING

from evalkit.config.settings import CheckpointSource, EncoderConfig, TextRules
from evalkit.errors import ConfigError, ModelError
from evalkit.models import attention
from evalkit.models.checkpoint import resolve
from evalkit.models.encoder import load_encoders
from evalkit.run.canary import canary

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
MORE = {
    "albert": {"embedding_size": 32},
    "deberta-v2": {"relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"]},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40},
    "electra": {"embedding_size": 32},
    "modernbert": {"local_attention": 8, "global_attn_every_n_layers": 2},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 8},
}
KINDS = (
    "albert",
    "bert",
    "camembert",
    "deberta-v2",
    "distilbert",
    "electra",
    "modernbert",
    "mpnet",
    "qwen3",
    "roberta",
)
KINDS = (*KINDS, "xlm-roberta")
TEXTS = ["hello world", "the hello, a b c! world the the hello hello the a b c d e", "!", ""]


def write(folder, kind, **changed):
    """Write a random model as transformers saves it, with a tokenizer that says itself what stands around a text."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tokenizer.json"
    like_bert = kind not in ("camembert", "roberta", "xlm-roberta")
    size = write_bert_tokenizer(path) if like_bert else write_xlmr_tokenizer(path, markers=False)
    tokenizer = Tokenizer.from_file(str(path))
    first, last, pad = ("[CLS]", "[SEP]", "[PAD]") if like_bert else ("<s>", "</s>", "<pad>")
    names = [(name, tokenizer.token_to_id(name)) for name in (first, last)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=names)
    tokenizer.save(str(path))
    ids = {"pad_token_id": tokenizer.token_to_id(pad), "bos_token_id": names[0][1], "eos_token_id": names[1][1]}
    if kind == "modernbert":
        ids |= {"cls_token_id": names[0][1], "sep_token_id": names[1][1]}
    shape = CONFIG_MAPPING[kind](vocab_size=size, **{**SIZES, **MORE.get(kind, {}), **ids, **changed})
    torch.manual_seed(3)
    model = MODEL_MAPPING[type(shape)](shape)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=1.0 if "embed" in name else 0.2)
    model.save_pretrained(folder)
    return folder


def config_of(folder, kind, **changed):
    rules = TextRules(max_tokens=24, expansion=True), TextRules(max_tokens=40)
    settings = {"query": rules[0], "document": rules[1], "head": "none", "pooling": "tokens", "normalize": False}
    settings |= {"skiplist": "none", "dtype": "float32", "architecture": kind, **changed}
    source = {"32": CheckpointSource(path=str(folder))}
    return EncoderConfig(name="x", kind="late_interaction", backbone="transformers", checkpoints=source, **settings)


def encoder_of(config, **options):
    found = {32: resolve(config.checkpoints["32"])}
    (encoder,) = load_encoders(config, found, device=torch.device("cpu"), **options)
    return encoder, found


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_equal_transformers_own_forward_pass_and_the_canary_lets_it_run(tmp_path, kind):
    folder = write(tmp_path, kind)
    encoder, found = encoder_of(config_of(folder, kind))
    model = MODEL_MAPPING[CONFIG_MAPPING[kind]].from_pretrained(folder, dtype=torch.float32).eval()
    for texts in (encoder.tokenize_queries(TEXTS), encoder.tokenize_documents(TEXTS)):
        vectors, counts = encoder.vectors(encoder.batch(texts, skip_punctuation=False))[32]
        for text, ours in zip(texts, vectors.split(counts.tolist()), strict=True):
            mask = torch.arange(len(text.ids)).unsqueeze(0) < text.attended
            with torch.inference_mode():
                wanted = model(input_ids=torch.tensor([text.ids]), attention_mask=mask.long()).last_hidden_state[0]
            assert (ours[: text.attended] - wanted[: text.attended]).abs().max() < 2e-5
    canary(encoder, found)


@pytest.mark.parametrize("kind", attention.INTERFACE_ARCHITECTURES)
def test_architectures_that_are_said_to_pack_give_packed_what_they_give_padded(tmp_path, kind):
    config = config_of(write(tmp_path, kind), kind)
    padded, packed = (encoder_of(config, attention=path)[0] for path in ("sdpa", "varlen"))
    assert packed.attention == "varlen"
    for texts in (padded.tokenize_queries(TEXTS), padded.tokenize_documents(TEXTS)):
        (wanted, _), (ours, _) = (
            encoder.vectors(encoder.batch(texts, skip_punctuation=False))[32] for encoder in (padded, packed)
        )
        assert (ours - wanted).abs().max() < 2e-5


@pytest.mark.parametrize("kind", ["deberta-v2", "modernbert", "mpnet", "qwen3"])
def test_architectures_whose_attention_is_of_another_kind_are_padded(tmp_path, kind, caplog):
    attention.warn_once.cache_clear()
    encoder, _ = encoder_of(config_of(write(tmp_path, kind), kind), attention="varlen")
    assert encoder.attention == "sdpa"
    assert "this architecture's attention may not accept packed texts; sdpa is used instead" in caplog.text


@pytest.mark.parametrize("kind", ["bert", "modernbert", "qwen3"])
def test_a_layer_that_the_checkpoint_lacks_is_refused_and_never_random(tmp_path, kind):
    folder = write(tmp_path, kind)
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    lost = next(name for name in tensors if ".1." in name and name.endswith("weight"))
    save_file({name: tensor for name, tensor in tensors.items() if name != lost}, weights)
    with pytest.raises(ModelError, match=r"missing .*; its missing layers would be random"):
        encoder_of(config_of(folder, kind))


def test_a_layer_that_the_config_leaves_out_is_refused_and_never_dropped(tmp_path):
    folder = write(tmp_path, "modernbert")
    values = json.loads((folder / "config.json").read_text("utf-8"))
    values |= {"num_hidden_layers": 1, "layer_types": values["layer_types"][:1]}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(ModelError, match=r"does not fit ModernBertModel: unexpected layers\.1\."):
        encoder_of(config_of(folder, "modernbert"))


def test_another_heads_tensors_and_prefixes_are_passed_over(tmp_path):
    """As a model with a masked-language head is saved: its backbone under a prefix, its head beside it."""
    folder = write(tmp_path, "roberta")
    wanted, _ = encoder_of(config_of(folder, "roberta"))
    weights = folder / "model.safetensors"
    tensors = {f"roberta.{name}": tensor for name, tensor in load_file(weights).items()}
    save_file(tensors | {"lm_head.dense.weight": torch.ones(32, 32), "lm_head.bias": torch.ones(9)}, weights)
    ours, _ = encoder_of(config_of(folder, "roberta"))
    batch = ours.batch(ours.tokenize_documents(TEXTS), skip_punctuation=False)
    assert torch.equal(ours.vectors(batch)[32][0], wanted.vectors(batch)[32][0])


def test_rope_stays_exact_in_half_precision(tmp_path):
    folder = write(tmp_path, "modernbert")
    encoder, _ = encoder_of(config_of(folder, "modernbert", dtype="bfloat16"))
    buffers = {name: buffer.dtype for name, buffer in encoder.module.named_buffers() if name.endswith("inv_freq")}
    assert buffers
    assert set(buffers.values()) == {torch.float32}
    assert {weight.dtype for weight in encoder.module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        (
            "bert",
            {"architecture": "roberta"},
            "config.json has model_type 'bert', wanted 'roberta' as model.architecture",
        ),
        (
            "roberta",
            {"document": TextRules(max_tokens=512)},
            r"document\.max_tokens=512, but the model has 510 positions",
        ),
    ],
)
def test_a_checkpoint_that_is_not_what_the_config_says_is_refused(tmp_path, kind, changed, message):
    folder = write(tmp_path, kind, **({"max_position_embeddings": 512} if kind == "roberta" else {}))
    with pytest.raises(ModelError, match=message):
        encoder_of(config_of(folder, kind, **changed))


def test_an_architecture_that_transformers_lacks_is_refused_by_name(tmp_path):
    folder = write(tmp_path, "bert")
    values = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**values, "model_type": "house_bert"}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"transformers \S+ has no class of its own for model_type 'house_bert'"):
        encoder_of(config_of(folder, "house_bert"))


def test_an_architecture_is_given_for_transformers_own_models_and_for_no_other(tmp_path):
    with pytest.raises(
        ConfigError, match=r"backbone=transformers with model\.architecture=None: wanted an architecture"
    ):
        config_of(tmp_path, None)
