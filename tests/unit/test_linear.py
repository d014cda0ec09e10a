"""Linear layers through oneDNN against torch's own in float64, and which layers of a module are replaced."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from evalkit.kernels.cpu import linear

ROWS, IN, OUT = 70, 48, 80


@pytest.fixture(autouse=True)
def needs_onednn():
    if not linear.has_layers():
        pytest.skip("this torch has no oneDNN layers")


@pytest.fixture
def given():
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(*shape, generator=generator) for shape in ((ROWS, IN), (OUT, IN), (OUT,)))


@torch.inference_mode()
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 2, 33, ROWS])
def test_a_packed_layer_gives_what_float64_gives(given, gelu, with_bias, rows):
    rows_XI, weight_OI, bias_O = given
    bias = bias_O if with_bias else None
    ours = linear.OnednnLinear(weight_OI, bias, gelu=gelu)(rows_XI[:rows])
    wanted = functional.linear(rows_XI[:rows].double(), weight_OI.double(), None if bias is None else bias.double())
    wanted = functional.gelu(wanted) if gelu else wanted
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_row_has_the_same_bits_whatever_rows_are_beside_it(given):
    _, weight_OI, bias_O = given
    many_XI = torch.randn(600, IN, generator=torch.Generator().manual_seed(2))
    layer = linear.OnednnLinear(weight_OI, bias_O, gelu=True)
    all_XO = layer(many_XI)
    for rows in (*range(2, 40), 64, 100, 255, 256, 257, 513):
        begin = (rows * 7) % (600 - rows)
        assert torch.equal(layer(many_XI[begin : begin + rows].clone()), all_XO[begin : begin + rows]), rows


@torch.inference_mode()
def test_berts_blocks_have_their_residual_in_the_same_pass(given):
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer

    torch.manual_seed(0)
    layer = BertLayer(BertConfig(hidden_size=IN, intermediate_size=OUT, num_attention_heads=4)).eval()
    for values in layer.parameters():
        values.normal_(std=0.3)
    hidden = given[0].unsqueeze(0)
    wanted = layer(hidden)
    linear.use_onednn(layer)
    kinds = [type(child) for child in layer.modules()]
    assert kinds.count(linear.OnednnResidual) == 2
    assert kinds.count(linear.OnednnLinear) == 6
    assert nn.Linear not in kinds
    torch.testing.assert_close(layer(hidden), wanted, rtol=1e-4, atol=1e-4)


def test_a_packed_layer_still_shows_its_weight(given):
    _, weight_OI, bias_O = given
    module = nn.Sequential(nn.Linear(IN, OUT))
    module[0].weight.data, module[0].bias.data = weight_OI, bias_O
    linear.use_onednn(module)
    shown = dict(linear.weights(module))
    assert set(shown) == {"0.weight", "0.bias"}
    assert torch.equal(shown["0.weight"], weight_OI)


class Block(nn.Module):
    """A layer and an activation under the names that transformers gives them."""

    def __init__(self, activation):
        super().__init__()
        self.fc1 = nn.Linear(IN, OUT)
        self.activation_fn = activation

    def forward(self, rows):
        return self.activation_fn(self.fc1(rows))


@torch.inference_mode()
@pytest.mark.parametrize(
    ("activation", "taken_in"),
    [(nn.GELU(), True), (nn.GELU(approximate="tanh"), False), (nn.ReLU(), False)],
)
def test_only_gelu_itself_is_taken_into_the_layer_before_it(given, activation, taken_in):
    block = Block(activation)
    wanted = block(given[0])
    linear.use_onednn(block)
    assert isinstance(block.fc1, linear.OnednnLinear)
    assert isinstance(block.activation_fn, nn.Identity) == taken_in
    torch.testing.assert_close(block(given[0]), wanted)


class Scaled(nn.Linear):
    """More than a linear layer."""

    def forward(self, rows):
        return 2 * super().forward(rows)


@pytest.mark.parametrize(
    "layer", [Scaled(IN, OUT), nn.Linear(IN, OUT).to(torch.bfloat16), nn.Linear(IN, OUT, device="meta")]
)
def test_other_layers_are_left_as_they_are(layer):
    module = nn.Sequential(layer)
    linear.use_onednn(module)
    assert module[0] is layer


def test_a_torch_without_the_calls_or_with_others_runs_its_own_layers(monkeypatch):
    def missing(name):
        raise AttributeError(name)

    for operator in (missing, lambda _name: lambda *_: torch.zeros(3, 16)):
        monkeypatch.setattr(linear, "_operator", operator)
        linear.has_layers.cache_clear()
        module = nn.Sequential(nn.Linear(IN, OUT))
        linear.use_onednn(module)
        assert type(module[0]) is nn.Linear
        assert not isinstance(linear.projection(module[0].weight), nn.Module)
    monkeypatch.undo()
    linear.has_layers.cache_clear()
