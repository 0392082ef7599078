"""Initial weights of a new model."""

from __future__ import annotations

import torch
from torch import nn

from bagel_mot.model.bagel import BagelModel
from bagel_mot.model.decoder import DecoderLayer


@torch.no_grad()
def initialise(model: BagelModel, generator: torch.Generator) -> None:
    """Normal weights of deviation 1/√fan_in, zero biases, unit norms; the gen expert starts as a copy of the und
    expert.

    What writes into the residual stream (o, down) starts smaller by √(2·layers), and both output heads start at zero,
    so that the first predictions are uniform text and zero velocity.
    """
    residual = (2 * model.config.decoder.num_layers) ** -0.5
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            scale = module.in_features**-0.5
            if name.endswith((".o", ".down")):
                scale *= residual
            module.weight.normal_(0.0, scale, generator=generator)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            # As large as the fixed sin-cos tables (unit scale), so that neither drowns the other.
            module.weight.normal_(0.0, 0.5, generator=generator)
    model.decoder.lm_head.weight.zero_()
    model.latent_out.weight.zero_()
    for layer in model.decoder.layers:
        assert isinstance(layer, DecoderLayer)
        layer.gen.load_state_dict(layer.und.state_dict())
    model.decoder.norm_gen.load_state_dict(model.decoder.norm.state_dict())
