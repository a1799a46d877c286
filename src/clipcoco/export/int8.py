"""A graph of ONNX with weights of 8 bits: whole numbers and a scale for each output channel, joined as it runs.

What flows between layers is float32: fixed ranges for it are what makes others lose recall. ONNX Runtime may still
round it, by blocks of each row, where that is faster: the recall that an export is compared by has that in it.
"""

from math import prod
from pathlib import Path
from typing import Any

import torch

from clipcoco.engine.quantize import quantize

LEAST = 1024  # numbers of a weight: smaller ones are not worth a node


def write_int8(path: Path) -> None:
    """Replace the float32 graph at `path`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(path)
    graph, made = model.graph, []
    axes = {name: _axis(node, place) for node in graph.node for place, name in enumerate(node.input)}
    for weight in list(graph.initializer):
        if weight.data_type != TensorProto.FLOAT or len(weight.dims) < 2 or prod(weight.dims) < LEAST:
            continue
        axis = axes[weight.name] % len(weight.dims)
        ints, scales = quantize(torch.from_numpy(numpy_helper.to_array(weight).copy()).movedim(axis, 0), 8)
        names = [f"{weight.name}.ints", f"{weight.name}.scales"]
        for name, part in zip(names, (ints.movedim(0, axis).contiguous(), scales), strict=True):
            graph.initializer.append(numpy_helper.from_array(part.numpy(), name))
        graph.initializer.remove(weight)
        made.append(helper.make_node("DequantizeLinear", names, [weight.name], axis=axis))
    nodes = [*made, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(model, path)


def _axis(node: Any, place: int) -> int:
    """Of the outputs in a node's input: the columns of what is multiplied from the left, else the first."""
    transposed = any(one.name == "transB" and one.i for one in node.attribute)
    return -1 if place == 1 and node.op_type in ("MatMul", "Gemm") and not transposed else 0
