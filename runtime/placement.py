"""Which layers' experts go to a GPU, and what of the model is then left to the host: pure arithmetic."""

from __future__ import annotations

from dataclasses import replace

from .model import Model, ModelInfo


def layers_that_fit(model: Model, gpu_bytes: int) -> int:
    """How many layers' experts fit, the last ones first; a layer whose experts have several types goes to no GPU."""
    n, left = 0, gpu_bytes
    for layer in reversed(model.layers):
        if "+" in layer.types:
            continue
        left -= layer.expert_bytes * layer.n_expert
        if left < 0:
            break
        n += 1
    return n


def without_layers(model: Model, n_gpu_layer: int) -> ModelInfo:
    """The model as the host sees it when a GPU has the experts of some layers."""
    info = model.info
    gone = [layer for layer in reversed(model.layers) if "+" not in layer.types][:n_gpu_layer]
    if not gone:
        return info
    expert_bytes = sum(layer.expert_bytes * layer.n_expert for layer in gone)
    rest = 1 - expert_bytes / info.expert_bytes
    slot_bytes = info.slot_bytes - sum(layer.slot_bytes * layer.n_expert for layer in gone)
    return replace(
        info,
        expert_bytes=info.expert_bytes - expert_bytes,
        token_bytes=int(info.token_bytes * rest),
        slot_bytes=max(info.slot_min_bytes, slot_bytes),
        n_expert_total=info.n_expert_total - sum(layer.n_expert for layer in gone),
    )
