"""Cut an export into the parts that the runtime runs in turn, each layer's experts packed as its kernels want.

Run as a process of its own (`python -m edgemoe.runtime.onnx.prepare EXPORT OUT`), once an export and a machine: it
needs the onnx package and a layer's experts twice, which the process that generates shall not have to pay for.

ONNX Runtime packs constant weights when a session opens, into its heap, unless it finds them packed in the external
file under the name that it computes from them. So OUT has both, and only what is packed stays mapped. Every blob begins
at a page: ONNX Runtime's own writer leaves small ones where its kernels crash.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .model import PAGE

PREPARED = "prepared.json"
ANGLES = ("cos_cache", "sin_cache")  # given to every layer: a mapping of them in each would count as often
_OPTIONS = {
    "session.save_external_prepacked_constant_initializers": "1",
    "session.optimized_model_external_initializers_min_size_in_bytes": "0",
}


def stage(kind: str, layer: int) -> str:
    """The file of a part. kind: "dense" (attention and router), "experts" or "head"."""
    return f"{kind}-{layer:05d}.onnx"


def prepare(export: Path, out: Path) -> None:
    """Write all parts into the folder `out`."""
    import onnx

    model = onnx.load(str(export / "model.onnx"), load_external_data=False)
    shape = json.loads((export / "edgemoe.json").read_text("utf-8"))
    n_layer = shape["n_layer"]
    cutter = _Cutter(model)
    layers = []
    for layer in range(n_layer):
        p = f"model.layers.{layer}"
        before = ["input_ids"] if layer == 0 else _carried(layer - 1)
        past = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        present = [f"present.{layer}.{part}" for part in ("key", "value")]
        dense = cutter.cut(
            [*before, "seqlens_k", "total_seq_len", *ANGLES, *past],
            [f"{p}.middle", f"{p}.moe.x", f"{p}.moe.weights", *present],
        )
        (out / stage("dense", layer)).write_bytes(dense.SerializeToString())
        experts = cutter.cut([f"{p}.moe.x", f"{p}.moe.weights"], [f"{p}.moe.sum"])
        layers.append(_pack(experts, export, out, layer))
    for name in ANGLES:
        (out / name).write_bytes(cutter.bytes_of(name, export))
    head = cutter.cut(_carried(n_layer - 1), ["logits"])
    (out / stage("head", 0)).write_bytes(head.SerializeToString())
    (out / PREPARED).write_text(json.dumps({"layers": layers}), "utf-8")


def _carried(layer: int) -> list[str]:
    """What a layer hands on: the residual stream, and what its experts add."""
    return [f"model.layers.{layer}.middle", f"model.layers.{layer}.moe.out"]


_TYPES = {"input_ids": 7, "seqlens_k": 6, "total_seq_len": 6}  # TensorProto's INT64 and INT32; all others are floats
_RANKS = {
    "input_ids": 2,
    "seqlens_k": 1,
    "total_seq_len": 0,
    "cos_cache": 2,
    "sin_cache": 2,
    "moe.x": 2,
    "moe.weights": 2,
    "moe.sum": 2,
}


class _Cutter:
    """Takes the nodes between two sets of values out of a graph."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._maker = {name: node for node in model.graph.node for name in node.output if name}
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._order = {id(node): i for i, node in enumerate(model.graph.node)}

    def cut(self, inputs: Sequence[str], outputs: Sequence[str]) -> Any:
        from onnx import helper

        nodes: dict[int, Any] = {}
        constants: dict[str, Any] = {}
        todo = list(outputs)
        while todo:
            name = todo.pop()
            if name in inputs or not name:
                continue
            if name in self._constants:
                constants[name] = self._constants[name]
                continue
            node = self._maker[name]
            if id(node) not in nodes:
                nodes[id(node)] = node
                todo += node.input
        used = {name for node in nodes.values() for name in node.input}
        ordered = sorted(nodes.values(), key=lambda node: self._order[id(node)])
        graph = helper.make_graph(
            ordered, "part", self._infos(name for name in inputs if name in used), self._infos(outputs),
            list(constants.values()),
        )  # fmt: skip
        return helper.make_model(
            graph, opset_imports=self._model.opset_import, ir_version=self._model.ir_version, producer_name="edgemoe"
        )

    def bytes_of(self, name: str, export: Path) -> bytes:
        """A tensor's, from its external file."""
        where = {entry.key: entry.value for entry in self._constants[name].external_data}
        with (export / where["location"]).open("rb") as file:
            file.seek(int(where["offset"]))
            return bytes(file.read(int(where["length"])))

    def _infos(self, names: Iterable[str]) -> list[Any]:
        from onnx import helper

        found = []
        for name in names:
            tail = ".".join(name.split(".")[-2:])
            rank = _RANKS.get(name, _RANKS.get(tail, 4 if name.startswith(("past_", "present.")) else 3))
            found.append(helper.make_tensor_value_info(name, _TYPES.get(name, 1), [None] * rank))
        return found


def _pack(experts: Any, export: Path, out: Path, layer: int) -> list[dict[str, Any]]:
    """Write a layer's experts and where the bytes of each lie: blobs of equal slices."""
    import onnx
    import onnxruntime as ort

    path, data = out / stage("experts", layer), f"experts-{layer:05d}.data"
    first = out / "packing.onnx"
    options = session_options(ort, 1)
    options.optimized_model_filepath = os.fspath(first)
    for key, value in _OPTIONS.items():
        options.add_session_config_entry(key, value)
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "packing.data")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.fspath(export))
    ort.InferenceSession(experts.SerializeToString(), options, providers=["CPUExecutionProvider"])
    packed = onnx.load(str(first), load_external_data=False)
    blobs = []
    with (out / data).open("wb") as target, (out / "packing.data").open("rb") as source:
        for tensor in packed.graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL:
                continue
            blobs += _move(tensor, source, target, data)
    for node in experts.graph.node:  # ONNX Runtime drops the properties of nodes
        if node.op_type == "QMoE":
            experts_of = next(json.loads(p.value) for p in node.metadata_props if p.key == "edgemoe.experts")
            for blob in blobs:
                if any(name and blob["tensor"].endswith(name) for name in node.input[2:]):  # it puts words before names
                    blob["experts"] = experts_of
    path.write_bytes(packed.SerializeToString())
    for name in ("packing.onnx", "packing.data"):
        (out / name).unlink()
    return [blob for blob in blobs if "experts" in blob]


def _move(tensor: Any, source: Any, target: Any, data: str) -> list[dict[str, Any]]:
    """Copy a tensor's bytes, and those packed of it, to pages of their own; point the proto there."""
    where = {entry.key: entry for entry in tensor.external_data}
    where["location"].value = data

    def copied(offset: int, length: int) -> int:
        at = -(-target.tell() // PAGE) * PAGE
        target.seek(at)
        source.seek(offset)
        left = length
        while left:
            part = source.read(min(left, 1 << 20))
            if not part:
                raise OSError("the packed file ends early")
            target.write(part)
            left -= len(part)
        return int(at)

    length = int(where["length"].value)
    where["offset"].value = str(copied(int(where["offset"].value), length))
    blobs = []
    for key, entry in where.items():
        if not key.startswith("prepacked_"):
            continue
        name, *parts = entry.value.split("|")
        moved = []
        for part in parts:
            offset, size, rest = part.split(";", 2)
            at = copied(int(offset), int(size))
            moved.append(f"{at};{size};{rest}")
            blobs.append({"tensor": tensor.name, "offset": at, "n_bytes": int(size), "file": data})
        entry.value = "|".join([name, *moved])
    if not blobs:
        blobs = [{"tensor": tensor.name, "offset": int(where["offset"].value), "n_bytes": length, "file": data}]
    return blobs


def session_options(ort: Any, n_threads: int) -> Any:
    """What every session of ours is opened with: no arena, no threads that spin, nothing said."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
