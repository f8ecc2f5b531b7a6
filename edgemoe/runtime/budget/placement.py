"""Which experts go to a GPU: pure arithmetic.

A layer's experts go there whole, so that nothing of it passes the host, or one by one, the most used first: those are
computed there while the CPU computes the others. What is faster depends on the machine, so it is decided layer by
layer from measured times (as HybriMoE, arXiv:2504.05897, schedules by a timeline; here the schedule is fixed at load,
since an expert that changes places would change the rounding).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from math import inf

from ..model import Model

_TRIES = 16  # numbers of whole layers that are compared


@dataclass(frozen=True)
class TierTimes:
    """Measured seconds. cpu_s: an expert on the CPU. start_s, gpu_s: n experts of a layer on the GPU and their results
    back take start_s + n * gpu_s."""

    cpu_s: float
    start_s: float
    gpu_s: float


@dataclass(frozen=True)
class Placement:
    """n_gpu_layer: layers whose experts a GPU has, in the order of `candidates`. experts: those of other layers that it
    has one by one, numbered through all layers, ascending. expert_s: estimate of a token's time in experts."""

    n_gpu_layer: int
    experts: tuple[int, ...] = ()
    expert_s: float = inf


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


def place(model: Model, gpu_bytes: int, rates: Sequence[float], times: TierTimes, *, tier_bytes: int) -> Placement:
    """The placement with the least estimated time within gpu_bytes.

    rates: probability that a token uses an expert, by number. tier_bytes: work space of experts one by one, beside
    their weights.
    """
    most = layers_that_fit(model, gpu_bytes)
    tries = sorted({*range(0, most + 1, max(1, -(-most // _TRIES))), most})
    found = [_with_layers(model, n, gpu_bytes, rates, times, tier_bytes) for n in tries]
    # At equal times whole layers: their rows do not pass the host.
    return min(found, key=lambda p: (p.expert_s, -p.n_gpu_layer)) if found else Placement(most)


def _with_layers(
    model: Model, n_gpu_layer: int, gpu_bytes: int, rates: Sequence[float], times: TierTimes, tier_bytes: int
) -> Placement:
    can = candidates(model)
    left = gpu_bytes - tier_bytes
    expert_s, layers, heap = 0.0, {}, []
    first = 0
    for i, layer in enumerate(model.layers):
        here = _Layer(range(first, first + layer.n_expert), rates, times)
        first += layer.n_expert
        if i in can[:n_gpu_layer]:
            left -= layer.expert_bytes * layer.n_expert
            expert_s += here.used * times.gpu_s
            continue
        expert_s += here.seconds(0.0) + times.start_s  # its row passes the host, as one does on the way to a tier
        if i in can:
            layers[i] = here
            heap.append((-here.gain() / layer.expert_bytes, i))
    heapify(heap)
    experts = []
    while heap:
        gain, i = heappop(heap)
        size = model.layers[i].expert_bytes
        if gain >= 0:
            break
        if size > left:
            continue
        left -= size
        expert_s += gain * size
        experts.append(layers[i].take())
        if layers[i].order:
            heappush(heap, (-layers[i].gain() / size, i))
    return Placement(n_gpu_layer, tuple(sorted(experts)), expert_s)


class _Layer:
    """A layer whose experts go to a GPU one by one, the most used first."""

    def __init__(self, experts: Sequence[int], rates: Sequence[float], times: TierTimes) -> None:
        self.order = sorted(experts, key=lambda e: (rates[e], -e))  # the next one last
        self.used = sum(rates[e] for e in experts)  # by a token
        self._there, self._rates, self._times = 0.0, rates, times

    def seconds(self, there: float) -> float:
        """A token's time here when the GPU computes `there` of the experts it uses: both work at once."""
        on_gpu = self._times.start_s + there * self._times.gpu_s if there else 0.0
        return max((self.used - there) * self._times.cpu_s, on_gpu)

    def gain(self) -> float:
        """Seconds that the next expert saves."""
        return self.seconds(self._there) - self.seconds(self._there + self._rates[self.order[-1]])

    def take(self) -> int:
        self._there += self._rates[self.order[-1]]
        return self.order.pop()
