"""Which layers' experts go to a GPU, and what of the model is then left to the host: pure arithmetic."""

from __future__ import annotations

from dataclasses import replace

from .model import Model, ModelInfo


def candidates(model: Model) -> list[int]:
    """Layers whose experts a GPU can have, as indices into `model.layers`, in the order in which they go there.

    The last ones first; one whose experts have several types goes to no GPU. Native code chooses alike (gpu.cpp).
    """
    return [i for i in reversed(range(len(model.layers))) if "+" not in model.layers[i].types]


def layers_that_fit(model: Model, gpu_bytes: int) -> int:
    """How many layers' experts fit into so many bytes."""
    n, left = 0, gpu_bytes
    for i in candidates(model):
        left -= model.layers[i].expert_bytes * model.layers[i].n_expert
        if left < 0:
            break
        n += 1
    return n


def without_layers(model: Model, n_gpu_layer: int) -> ModelInfo:
    """The model as the host sees it when a GPU has the experts of some layers."""
    info = model.info
    if n_gpu_layer == 0:
        return info
    gone = [model.layers[i] for i in candidates(model)[:n_gpu_layer]]
    expert_bytes = sum(layer.expert_bytes * layer.n_expert for layer in gone)
    slot_bytes = sum(layer.slot_bytes * layer.n_expert for layer in gone)
    return replace(
        info,
        expert_bytes=info.expert_bytes - expert_bytes,
        token_bytes=int(info.token_bytes * (1 - expert_bytes / info.expert_bytes)),
        slot_bytes=max(info.slot_min_bytes, info.slot_bytes - slot_bytes),
        n_expert_total=info.n_expert_total - sum(layer.n_expert for layer in gone),
    )
