"""XMOD with one language adapter: transformers' result to the bit."""

import pytest
import torch
from torch import nn
from transformers import XmodConfig, XmodModel

from evalkit.models.backbones.xmod import OneAdapterOutput, use_one_adapter


@pytest.mark.parametrize("ln_before_adapter", [True, False])
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("own_norm", [True, False])
@pytest.mark.parametrize("pre_norm", [True, False])
def test_one_adapter_gives_the_same_bits_and_keeps_the_names(pre_norm, own_norm, reuse, ln_before_adapter):
    torch.manual_seed(0)
    shape = XmodConfig(
        vocab_size=60,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=48,
        languages=["de_DE"],
        default_language="de_DE",
        pre_norm=pre_norm,
        adapter_layer_norm=own_norm,
        adapter_reuse_layer_norm=reuse,
        ln_before_adapter=ln_before_adapter,
    )
    module = XmodModel(shape, add_pooling_layer=False).eval()
    for weight in module.parameters():  # norms that do something
        nn.init.normal_(weight, std=0.3)
    ids = torch.arange(3, 24).view(3, 7)
    names = {name for name, _ in module.named_parameters()}
    with torch.inference_mode():
        wanted = module(input_ids=ids).last_hidden_state.clone()
        use_one_adapter(module)
        ours = module(input_ids=ids).last_hidden_state
    assert sum(isinstance(part, OneAdapterOutput) for part in module.modules()) == 2
    assert {name for name, _ in module.named_parameters()} == names
    assert torch.equal(ours, wanted)
