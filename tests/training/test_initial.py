"""The initial values of a new model are those that one generator draws in turn, whichever part is asked for first."""

from __future__ import annotations

import torch
from torch import nn

from bagel_mot.config import BagelConfig, DecoderConfig, VaeConfig, VitConfig
from bagel_mot.model.bagel import BagelModel
from bagel_mot.training.initial import InitialValues, initialise

CONFIG = BagelConfig(
    decoder=DecoderConfig(
        hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, intermediate_size=48, vocab_size=128
    ),
    vit=VitConfig(hidden_size=32, num_layers=1, num_heads=2, intermediate_size=48, patch_size=16, image_size=64),
    vae=VaeConfig(),
    max_latent_size=4,
    vit_max_num_patch_per_side=4,
)


@torch.no_grad()
def _drawn_in_turn(seed: int) -> BagelModel:
    """A model whose weights are drawn module by module, and changed afterwards."""
    torch.manual_seed(1)
    model, generator = BagelModel(CONFIG), torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            small = (2 * 2) ** -0.5 if name.endswith((".o", ".down")) else 1.0
            module.weight.normal_(0.0, module.in_features**-0.5 * small, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0.0, 0.5, generator=generator)
    model.decoder.lm_head.weight.zero_()
    model.latent_out.weight.zero_()
    for layer in model.decoder.layers:
        layer.gen.load_state_dict(layer.und.state_dict())  # type: ignore[union-attr]
    return model


def test_a_model_begins_with_what_is_drawn_in_turn() -> None:
    expected = _drawn_in_turn(7).state_dict()
    model = BagelModel(CONFIG)
    initialise(model, 7)
    assert model.state_dict().keys() == expected.keys()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=0, msg=name)
    other = InitialValues(CONFIG, 8).read("decoder.embed_tokens.weight", (0, 0), (3, 32))
    assert not torch.equal(other, expected["decoder.embed_tokens.weight"][:3])


def test_parts_do_not_depend_on_the_order_in_which_they_are_read() -> None:
    expected = _drawn_in_turn(7).state_dict()
    values = InitialValues(CONFIG, 7)
    for name in [*sorted(expected), *sorted(expected, reverse=True)]:
        tensor = expected[name]
        offsets, sizes = [side // 3 for side in tensor.shape], [side - side // 3 for side in tensor.shape]
        part = values.read(name, offsets, sizes)
        assert part.untyped_storage().nbytes() == part.nbytes
        torch.testing.assert_close(part, tensor[tuple(slice(o, None) for o in offsets)], rtol=1e-6, atol=0, msg=name)
