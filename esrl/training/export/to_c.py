"""A policy as C: one header of C99 that needs no library and allocates nothing, and a program that tests it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from esrl.core.types import EsrlError, reason_of
from esrl.training.export import c_rules as c_rules  # fills the table
from esrl.training.export.c_code import TYPES, Code
from esrl.training.export.deployed import Deployed, leaf_names, leaves_of
from esrl.training.export.graph import Graph, Unsupported, Value
from esrl.training.export.program import bounds_of, fitted
from esrl.training.export.translate import translate

PREFIX = "esrl"
_LIMIT = 1e-5  # differences of floats from what esrl computes
_TEST_LANES = 4  # of the self-test, so that a header stays short


def write(policy: Deployed) -> dict[str, bytes]:
    """The files of a policy, by their names.

    Raises:
      EsrlError: its network has an operation that C has no rule for, which is named.
    """
    try:
        text = header(policy)
    except Unsupported as error:
        raise EsrlError(f"the network cannot be exported to c: {error}; stablehlo takes any network") from error
    except EsrlError:
        raise
    except Exception as error:  # whatever a network may hold that no rule thought of
        reason = reason_of(error)
        raise EsrlError(f"the network cannot be exported to c ({reason}); stablehlo takes any network") from error
    return {"policy.h": text.encode(), "self_test.c": _SELF_TEST.encode()}


class _Array:
    """An argument of a function: an array that C passes by its address."""

    def __init__(self, name: str, shape: Sequence[int], dtype: Any) -> None:
        self.name, self.shape, self.dtype = identifier(name), tuple(shape), np.dtype(dtype)
        if self.dtype.name not in TYPES:
            raise Unsupported(f"there is no rule for numbers of type {self.dtype}")

    @property
    def size(self) -> int:
        return max(math.prod(self.shape), 1)

    def declared(self, constant: bool = False) -> str:
        return f"{'const ' if constant else ''}{TYPES[self.dtype.name]} {self.name}[{self.size}]"


def identifier(name: str) -> str:
    """A name as C has them."""
    return re.sub(r"\W", "_", name, flags=re.ASCII)


def header(policy: Deployed) -> str:
    """The text of `policy.h`.

    Raises:
      Unsupported: an operation without a rule.
    """
    code = Code(PREFIX)
    about = policy.about
    given = [_Array(leaf["name"], leaf["shape"], leaf["device"]) for leaf in leaves_of(about["observation"])]
    actions = [_Array(leaf["name"], leaf["shape"], leaf["dtype"]) for leaf in leaves_of(about["action"])]
    for arrays in (given, actions):
        if len({x.name for x in arrays}) < len(arrays):
            named = ", ".join(sorted(x.name for x in arrays))
            raise EsrlError(f"two entries of the space have one name in C, among {named}; rename one")
    shown = jax.eval_shape(policy.see, policy.observation)
    names = [re.sub("^observation", "seen", leaf["name"]) for leaf in leaves_of(about["observation"])]
    seen = [_Array(name, x.shape, x.dtype) for name, x in zip(names, jax.tree.leaves(shown), strict=True)]
    carries = [
        _Array(name, x.shape, x.dtype) for name, x in zip(about["carry"], jax.tree.leaves(policy.start), strict=True)
    ]
    result = jax.eval_shape(policy.decide, policy.params, shown, policy.start)[0]
    output = _Array("output", result.shape, result.dtype)
    tree = jax.tree.structure(shown)

    see = _function(
        code, lambda _, x: policy.see(x), (), (leaf_names(about["observation"]),), (policy.observation,),
        given, seen, "see", "An observation as the network takes it.",
    )  # fmt: skip
    start = jax.tree.structure(policy.start)
    held = [_Member(x) for x in carries]
    decide = _function(
        code, policy.decide, policy.params,
        (tree.unflatten(names), start.unflatten(about["carry"])), (shown, policy.start),
        [*seen, *held], [output, *held], "decide", "One step of the network; the carry goes on.",
    )  # fmt: skip
    finish = _function(
        code, lambda _, x: policy.finish(x), (), ("output",), (result,), [output], actions, "finish",
        "The most likely action, as the environment takes it.",
        lambda graph, values: [
            fitted(graph, x, *bound) for x, bound in zip(values, bounds_of(policy.action_space), strict=True)
        ],
    )  # fmt: skip
    parts = [
        _comment(policy, code, given, seen, carries, output, actions),
        f"#ifndef {PREFIX.upper()}_POLICY_H\n#define {PREFIX.upper()}_POLICY_H\n",
        "#include <stdint.h>" + ("\n#include <math.h>" if code.libm or code.infinite else ""),
        _carry_type(carries, jax.tree.leaves(policy.start), code),
        *code.constants,
        _FLOOR,
        see,
        decide,
        finish,
        _act(given, seen, output, actions),
        "#ifdef ESRL_SELF_TEST",
        _self_test(policy, given, actions, output),
        "#endif\n\n#endif",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


class _Member(_Array):
    """A part of the carry."""

    def __init__(self, array: _Array) -> None:
        self.__dict__.update(array.__dict__)
        self.name = f"carry->{array.name}"


def _function(
    code: Code,
    fn: Callable[..., Any],
    params: Any,
    names: tuple[Any, ...],
    inputs: tuple[Any, ...],
    given: Sequence[_Array],
    made: Sequence[_Array],
    name: str,
    comment: str,
    after: Callable[[Graph, list[Value]], list[Value]] | None = None,
) -> str:
    """A function of C from arrays to arrays."""
    graph, values = translate(fn, params, names, *inputs)
    values = values if after is None else after(graph, values)
    graph = graph.finished(values)
    by_name = dict(zip((x.name for x in graph.inputs), (x.name for x in given), strict=True))
    members = any(isinstance(x, _Member) for x in (*given, *made))
    # A part of the carry may be needed after it was written, so what is made goes to the side first.
    outputs: list[tuple[Value, str, Any]] = []
    copies: list[str] = []
    local: list[str] = []
    for value, array in zip(values, made, strict=True):
        target = array.name
        if isinstance(array, _Member):
            target = f"next_{len(local)}"
            local.append(f"{TYPES[array.dtype.name]} {target}[{array.size}];")
            copies.append(f"for (int i = 0; i < {array.size}; i++) {array.name}[i] = {target}[i];")
        outputs.append((value, target, array.dtype))
    lines = [*local, *code.body(graph, by_name, outputs), *copies]
    arguments = [x.declared(constant=True) for x in given if not isinstance(x, _Member)]
    arguments += [f"{PREFIX}_carry *carry"] if name == "decide" else []
    arguments += [x.declared() for x in made if not isinstance(x, _Member)]
    unused = [f"(void){x.name};" for x in given if not isinstance(x, _Member) and not _in(x.name, lines)]
    unused += ["(void)carry;"] if name == "decide" and not members else []
    body = "\n".join(f"    {line}" for line in (*unused, *lines))
    return f"/* {comment} */\nstatic inline void {PREFIX}_{name}({', '.join(arguments)})\n{{\n{body}\n}}"


def _in(name: str, lines: Sequence[str]) -> bool:
    return any(re.search(rf"\b{name}\b", line) for line in lines)


def _carry_type(carries: Sequence[_Array], start: Sequence[np.ndarray], code: Code) -> str:
    """What is remembered from step to step, and how it begins."""
    members = [f"    {x.declared()};" for x in carries] or ["    uint8_t none; /* it remembers nothing */"]
    lines = [
        f"    for (int i = 0; i < {x.size}; i++) carry->{x.name}[i] = {code.number(value.flat[0])};"
        if (value == value.flat[0]).all()
        else "\n".join(f"    carry->{x.name}[{i}] = {code.number(v)};" for i, v in enumerate(value.flat))
        for x, value in zip(carries, map(np.asarray, start), strict=True)
    ] or ["    carry->none = 0;"]
    return (
        "/* What is remembered from step to step; start it when an episode begins. */\n"
        f"typedef struct {{\n{chr(10).join(members)}\n}} {PREFIX}_carry;\n\n"
        f"static inline void {PREFIX}_start({PREFIX}_carry *carry)\n{{\n{chr(10).join(lines)}\n}}"
    )


def _act(given: Sequence[_Array], seen: Sequence[_Array], output: _Array, actions: Sequence[_Array]) -> str:
    """The function that most callers need."""
    arguments = [
        *(x.declared(constant=True) for x in given), f"{PREFIX}_carry *carry", *(x.declared() for x in actions)
    ]  # fmt: skip
    lines = [f"{x.declared()};" for x in (*seen, output)]
    lines += [
        f"{PREFIX}_see({', '.join(x.name for x in (*given, *seen))});",
        f"{PREFIX}_decide({', '.join([*(x.name for x in seen), 'carry', output.name])});",
        f"{PREFIX}_finish({', '.join([output.name, *(x.name for x in actions)])});",
    ]
    body = "\n".join(f"    {line}" for line in lines)
    head = f"static inline void {PREFIX}_act({', '.join(arguments)})"
    return f"/* From an observation to an action. */\n{head}\n{{\n{body}\n}}"


def _comment(
    policy: Deployed,
    code: Code,
    given: Sequence[_Array],
    seen: Sequence[_Array],
    carries: Sequence[_Array],
    output: _Array,
    actions: Sequence[_Array],
) -> str:
    """The comment at the top: what it is, and what it takes."""
    about = policy.about

    def listed(arrays: Sequence[_Array]) -> str:
        return ", ".join(f"{x.declared()}" for x in arrays) or "none"

    size = lambda arrays: sum(x.size * x.dtype.itemsize for x in arrays)  # noqa: E731
    whole = not any(x.dtype.kind == "f" for x in (*seen, output, *carries))
    kind = f"integers alone in {PREFIX}_decide" if whole else "floats"
    return (
        f"/* A policy of {about['agent']} for {about['env']}, generation {about['generation']}; esrl {about['esrl']}.\n"
        f" *\n * C99, {'with functions of math.h' if code.libm else 'without any library'}; nothing is allocated;"
        f" {kind}.\n"
        f" * observation: {listed(given)}\n * action: {listed(actions)}\n * carry: {listed(carries)}\n"
        f" * constants: {code.bytes['constants']:,} bytes; carry: {size(carries):,} bytes; stack:"
        f" {code.bytes['stack'] + size([*seen, output]):,} bytes of arrays.\n"
        f" *\n * {PREFIX}_carry carry; {PREFIX}_start(&carry); then {PREFIX}_act(...) for every step.\n"
        f" * It acts by the most likely action.\n"
        f" * cc -std=c99 self_test.c{' -lm' if code.libm else ''} && ./a.out repeats what esrl did with it.\n */"
    )


def _self_test(policy: Deployed, given: Sequence[_Array], actions: Sequence[_Array], output: _Array) -> str:
    """Observations, with the outputs and actions that esrl gave for them."""
    stored = {name.partition("/")[2]: x[:, :_TEST_LANES] for name, x in policy.self_test.items()}
    steps, lanes = stored["reset"].shape
    lines = [f"enum {{ {PREFIX}_test_steps = {steps}, {PREFIX}_test_lanes = {lanes} }};"]
    code = Code(PREFIX)
    tests = [*zip(leaves_of(policy.about["observation"]), given, strict=True)]
    results = [*zip(leaves_of(policy.about["action"]), actions, strict=True), ({"name": "output"}, output)]
    for leaf, array in [({"name": "reset"}, _Array("reset", (), np.uint8)), *tests, *results]:
        rows = np.asarray(stored[leaf["name"]]).astype(array.dtype).reshape(-1)
        numbers = ", ".join(code.number(x) for x in rows)
        lines.append(f"static const {TYPES[array.dtype.name]} {PREFIX}_test_{array.name}[{rows.size}] = {{{numbers}}};")
    body = [
        f"{PREFIX}_carry carry[{lanes}];",
        "int wrong = 0;",
        f"for (int at = 0; at < {steps * lanes}; at++) {{",
        f"    {PREFIX}_carry *now = carry + at % {lanes};",
        f"    if ({PREFIX}_test_reset[at]) {PREFIX}_start(now);",
        *(f"    {x.declared()};" for _, x in results),
    ]
    shown = jax.tree.leaves(jax.eval_shape(policy.see, policy.observation))
    body += [f"    {TYPES[x.dtype.name]} seen{i}[{max(math.prod(x.shape), 1)}];" for i, x in enumerate(shown)]
    observed = [f"{PREFIX}_test_{x.name} + at * {x.size}" for x in given]
    seen = [f"seen{i}" for i in range(len(shown))]
    body += [
        f"    {PREFIX}_see({', '.join([*observed, *seen])});",
        f"    {PREFIX}_decide({', '.join([*seen, 'now', 'output'])});",
        f"    {PREFIX}_finish({', '.join(['output', *(x.name for x in actions)])});",
    ]
    for _, x in results:
        pair = f"{x.name}[i], {PREFIX}_test_{x.name}[at * {x.size} + i]"
        body.append(f"    for (int i = 0; i < {x.size}; i++) wrong += {PREFIX}_differ({pair});")
    body += ["}", "return wrong;"]
    text = "\n".join(f"    {line}" for line in body)
    floats = output.dtype.kind == "f" or any(x.dtype.kind == "f" for x in actions)
    limit = repr(_LIMIT if floats else 0.0)
    differ = (
        f"static inline int {PREFIX}_differ(double x, double y)\n{{\n"
        "    const double size = y < 0 ? -y : y, far = x < y ? y - x : x - y;\n"
        f"    return !(far <= {limit} * (size > 1 ? size : 1));\n}}"
    )
    head = f"/* How many numbers differ from esrl's: 0. */\nstatic inline int {PREFIX}_self_test(void)"
    return "\n".join(lines) + f"\n\n{differ}\n\n{head}\n{{\n{text}\n}}"


_FLOOR = f"""static inline float {PREFIX}_floor(float x)
{{
    if (!(x > -2147483648.0f && x < 2147483648.0f)) return x; /* a whole number already, or none */
    const float whole = (float)(int32_t)x;
    return whole > x ? whole - 1.0f : whole;
}}"""
_SELF_TEST = f"""#define ESRL_SELF_TEST
#include "policy.h"

int main(void)
{{
    return {PREFIX}_self_test() != 0;
}}
"""
