"""A policy for ONNX: `policy.onnx`, and `self_test.npz` with observations and the actions for them."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import jax
import numpy as np

from esrl.core.extras import import_extra
from esrl.core.types import EsrlError
from esrl.training.export.deployed import Deployed, leaves_of
from esrl.training.export.graph import Graph, Node, Value, held
from esrl.training.export.program import Program, program
from esrl.training.export.to_numpy import arrays_of

OPSET, IR_VERSION = 18, 8  # of 2022: what runtimes on robots have
_AXES = ("ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd")
_AS_INPUTS = {  # attributes of the graph that ONNX has as further inputs, in their order
    "Reshape": ("shape",), "Expand": ("shape",), "Slice": ("starts", "ends", "axes", "steps"), "CumSum": ("axis",),
    **dict.fromkeys(_AXES, ("axes",)),
}  # fmt: skip


def write(policy: Deployed) -> dict[str, bytes]:
    """The files of a policy, by their names.

    Raises:
      EsrlError: onnx is not installed, or the network has an operation without a rule.
    """
    onnx = import_extra("onnx", "onnx", "an export to ONNX")
    import_extra("onnx.checker", "onnx", "an export to ONNX")
    made = program(policy, "onnx")
    arrays_of(policy, made)  # the same operations, tried by NumPy
    writer = _Writer(onnx, made.graph)
    leaves = leaves_of(policy.about["observation"])
    inputs = [writer.input(leaf["name"], leaf["shape"], _given(leaf), leaf["device"]) for leaf in leaves]
    carries = dict(zip(policy.about["carry"], jax.tree.leaves(policy.start), strict=True))
    inputs += [writer.input(name, x.shape, x.dtype, x.dtype) for name, x in carries.items()]
    for node in made.graph.nodes:
        writer.node(node)
    outputs = [
        writer.output(leaf["name"], made.actions[leaf["name"]], leaf["dtype"])
        for leaf in leaves_of(policy.about["action"])
    ]
    outputs.append(writer.output("output", made.output, made.output.dtype))
    after = [f"next_{name}" for name in carries]
    outputs += [
        writer.output(name, value, x.dtype) for name, value, x in zip(after, made.carry, carries.values(), strict=True)
    ]
    arrays = [onnx.numpy_helper.from_array(array, name) for name, array in writer.arrays(made).items()]
    graph = onnx.helper.make_graph(writer.nodes, "policy", inputs, outputs, arrays)
    opset = onnx.helper.make_opsetid("", OPSET)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION, producer_name="esrl")
    start = {name: np.asarray(x).tolist() for name, x in carries.items()}
    about = policy.about | {"next_carry": after, "output": "output", "start": start}
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    onnx.checker.check_model(model, full_check=True)
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **policy.self_test)
    return {"policy.onnx": model.SerializeToString(deterministic=True), "self_test.npz": file.getvalue()}


def _given(leaf: dict[str, Any]) -> np.dtype:
    """The type in which an observation is given: real numbers as float32, others as the space has them."""
    dtype = np.dtype(leaf["dtype"])
    return np.dtype(np.float32) if dtype.kind == "f" else dtype


class _Writer:
    """Nodes of ONNX, and the constants that they need beside the graph's."""

    def __init__(self, onnx: Any, graph: Graph) -> None:
        self.onnx, self.graph = onnx, graph
        self.nodes: list[Any] = []
        self._own: dict[str, np.ndarray] = {}
        self._inside: dict[str, str] = {}  # names of inputs as the graph holds them, where that is another type

    def arrays(self, made: Program) -> dict[str, np.ndarray]:
        """Every constant by its name."""
        return made.graph.arrays | self._own

    def input(self, name: str, shape: Any, given: Any, device: Any) -> Any:
        """An input [batch, ...] of the type in which it is given; the device has another, and the graph holds that."""
        if np.dtype(given) != held(device):
            self._inside[name] = f"{name}/held"
            self._add("Cast", [name], f"{name}/held", to=self._type(held(device)))
        return self._described(name, shape, given)

    def output(self, name: str, value: Value, dtype: Any) -> Any:
        """An output [batch, ...]."""
        inside = self._inside.get(value.name, value.name)
        same = np.dtype(dtype) == held(value.dtype)
        self._add("Identity" if same else "Cast", [inside], name, **({} if same else {"to": self._type(dtype)}))
        return self._described(name, value.shape, dtype)

    def node(self, node: Node) -> None:
        """One operation of the graph."""
        given = [self._inside.get(name, name) for name in node.inputs]
        kwargs = dict(node.attributes)
        if node.op == "Repeat":
            self._add("Shape", [given[1]], f"{node.output}/batch", start=0, end=1)
            rest, shape = self._constant(kwargs["shape"]), f"{node.output}/shape"
            self._add("Concat", [f"{node.output}/batch", rest], shape, axis=0)
            self._add("Expand", [given[0], shape], node.output)
        elif node.op == "Pad":
            self._add("Pad", [given[0], self._constant(kwargs["pads"]), given[1]], node.output)
        elif node.op == "ShiftRight":  # ONNX shifts unsigned numbers alone; a remainder by floor is never negative
            size, rest, whole = self._int32(1 << kwargs["by"]), f"{node.output}/rest", f"{node.output}/whole"
            self._add("Mod", [given[0], size], rest)
            self._add("Sub", [given[0], rest], whole)
            self._add("Div", [whole, size], node.output)
        elif node.op in ("Sorted", "SortedPlaces"):
            unused = f"{node.output}/unused"
            both = [node.output, unused] if node.op == "Sorted" else [unused, node.output]
            k = self._constant([kwargs["k"]])
            self.nodes.append(self.onnx.helper.make_node("TopK", [given[0], k], both, axis=kwargs["axis"], largest=0))
        else:
            if node.op == "Conv" and self.graph.shapes[node.output][1] == np.int32:
                return self._whole_conv(node, given)
            given += [self._constant(kwargs.pop(name)) for name in _AS_INPUTS.get(node.op, ())]
            if node.op == "Cast":
                kwargs["to"] = self._type(kwargs["to"])
            self._add(node.op, given, node.output, **kwargs)

    def _whole_conv(self, node: Node, given: list[str]) -> None:
        """A convolution of int8 numbers, which runtimes have of floats: exact while its sums are below 2^24."""
        kernel = self.graph.arrays.get(node.inputs[1])
        if kernel is None:  # its sums have no bound that is known here
            raise EsrlError(
                "the network cannot be exported to onnx: it computes the kernel of a convolution of int8; use numpy or"
                " c"
            )
        summed = math.prod(kernel.shape[1:])
        if summed * 127 * 127 >= 1 << 24:
            raise EsrlError(
                f"the network cannot be exported to onnx: its convolution sums {summed:,} products of int8, which"
                " runtimes do in float32 alone, and would round; use numpy or c"
            )
        for i, name in enumerate(given):
            self._add("Cast", [name], f"{node.output}/{i}", to=self._type(np.float32))
        self._add("Conv", [f"{node.output}/{i}" for i in range(len(given))], f"{node.output}/sum", **node.attributes)
        self._add("Cast", [f"{node.output}/sum"], node.output, to=self._type(np.int32))

    def _add(self, op: str, given: list[str], out: str, **kwargs: Any) -> None:
        self.nodes.append(self.onnx.helper.make_node(op, given, [out], **kwargs))

    def _constant(self, numbers: Any) -> str:
        """The name of whole numbers as an array."""
        name = "integers:" + json.dumps(numbers)
        self._own[name] = np.asarray(numbers, np.int64)
        return name

    def _int32(self, number: int) -> str:
        """The name of a number as an int32."""
        name = f"int32:{number}"
        self._own[name] = np.asarray(number, np.int32)
        return name

    def _described(self, name: str, shape: Any, dtype: Any) -> Any:
        return self.onnx.helper.make_tensor_value_info(name, self._type(dtype), ["batch", *map(int, shape)])

    def _type(self, dtype: Any) -> int:
        """ONNX's number of a type."""
        if str(dtype) == "bfloat16":
            return self.onnx.TensorProto.BFLOAT16
        return self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
