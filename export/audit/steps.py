"""Every node once, in order: what is known of its inputs gives what is known of its outputs."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx

from export.audit import box, constants, entries, formulas
from export.audit.elementwise import entrywise
from export.audit.node import Node
from export.audit.report import AuditedLayer, AuditError
from export.audit.rules import RULES
from export.audit.values import Dim, Formula, NoBoundError, Value, unforeseen

INFINITE_ALLOWED = {"Clip", "Max", "Min", "Pad", "Where"}
NAN_ALLOWED = {"ai.onnx.ml.Imputer"}
GRAPHS = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
RANDOM = {"Bernoulli", "Dropout", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
SEVERAL = {
    *("Add", "Concat", "Div", "Einsum", "Gemm", "MatMul", "Max", "Mean", "Min", "Mul", "ScatterElements", "ScatterND", "Sub", "Sum"),
    *("Where", "ai.onnx.ml.FeatureVectorizer"),
}
"""Operators whose rule counts every input that moves; of any other it counts the first."""
SIZE_ONLY = {"Shape", "Size"}
SHARED_LIMITS = {"Split"}
"""Operators all of whose outputs lie between the same limits."""
MOST_FOLDED = 2**28
"""Most numbers that all folded constants together may hold."""
Scope = Mapping[str, str]


def walked(
    nodes: Iterable[onnx.NodeProto], values: dict[str, Value], opset: int, seconds: float = math.inf, boxed: bool = False
) -> Iterator[tuple[Node, list[Value]]]:
    """Yield every node with what is known of its outputs, and add that to ``values``; an `If` whose condition is constant is followed.

    Raises:
        AuditError: two tensors have one name.
    """
    folded = 0
    for node in (replace(node, seconds=seconds, boxed=boxed) for node in opened(nodes, values, opset, {})):
        produced = visit(node)
        made = sum(value.constant.size for value in produced if value.constant is not None)
        folded += made
        if made and folded > MOST_FOLDED:
            cause = f"{node.place}: the constants of the graph would hold more than {MOST_FOLDED} numbers"
            produced = [Value(value.name, value.shape, bound=math.inf, causes=(cause,)) for value in produced]
        add(produced, values)
        if any(attribute.type in GRAPHS for attribute in node.proto.attribute):
            node.layers.extend(inside(node, values, opset))
        yield node, produced


def add(produced: Iterable[Value], values: dict[str, Value]) -> None:
    """Add named tensors.

    Raises:
        AuditError: a name is taken.
    """
    for value in produced:
        if value.name in values:
            raise AuditError(f"two tensors have the name {value.name!r}")
        if value.name:
            values[value.name] = value


def opened(nodes: Iterable[onnx.NodeProto], values: dict[str, Value], opset: int, scope: Scope) -> Iterator[Node]:
    """Yield the nodes, those of a branch that a constant chooses in place of their `If`, under names of their own."""
    inner = dict(scope)
    prefix = inner.pop("", "")
    for proto in nodes:
        if prefix:
            proto = renamed(proto, inner, prefix)  # noqa: PLW2901  # the node of this turn, under its own name
        node = Node(proto, tuple(values.get(name, undefined(name)) if name else None for name in proto.input), opset)
        branch = chosen(node) if proto.op_type == "If" and proto.domain in ("", "ai.onnx") else None
        if branch is None:
            yield node
            continue
        mine = {**inner, "": f"{proto.output[0]}/"}
        for tensor in branch.initializer:
            mine[tensor.name] = f"{proto.output[0]}/{tensor.name}"
            add([constants.initialiser(tensor, mine[tensor.name])], values)
        yield from opened(branch.node, values, opset, mine)
        for output, result in zip(proto.output, branch.output, strict=False):
            name = next(
                (found for found in (f"{proto.output[0]}/{result.name}", mine.get(result.name, result.name)) if found in values), ""
            )
            link = onnx.helper.make_node("Identity", [name], [output], name=proto.name)
            yield Node(link, (values.get(name, undefined(result.name)),), opset)


def chosen(node: Node) -> onnx.GraphProto | None:
    """Return the branch of an `If` that its constant condition takes; None where it is not constant, or the branch has sparse constants."""
    condition = node.inputs[0] if node.inputs else None
    if condition is None or condition.constant is None or condition.constant.size != 1:
        return None
    found: onnx.GraphProto | None = node.attribute("then_branch" if condition.constant.ravel()[0] else "else_branch", None)
    return None if found is None or found.sparse_initializer else found


def renamed(proto: onnx.NodeProto, scope: dict[str, str], prefix: str) -> onnx.NodeProto:
    """Return a node of a branch with the names that its tensors have outside; what it defines is added to ``scope``."""
    copy = onnx.NodeProto()
    copy.CopyFrom(proto)
    copy.input[:] = [scope.get(name, name) for name in proto.input]
    copy.output[:] = [prefix + name if name else "" for name in proto.output]
    scope.update({name: prefix + name for name in proto.output if name})
    return copy


def inside(node: Node, values: Mapping[str, Value], opset: int) -> list[AuditedLayer]:
    """Return the layers inside the graphs of a node that is not followed: their norms hold, whatever comes in."""
    graphs = [g for a in node.proto.attribute if a.type in GRAPHS for g in ([a.g] if a.type == onnx.AttributeProto.GRAPH else a.graphs)]
    found = []
    for graph in graphs:
        known = {**values, **{tensor.name: constants.initialiser(tensor) for tensor in graph.initializer}}
        known.update({value.name: undefined(value.name) for value in graph.input})
        sparse = [tensor.values.name for tensor in graph.sparse_initializer]
        for value in {*sparse, *(name for inner in graph.node for name in inner.output)}:
            known.pop(value, None)
        found += [layer for inner, _ in walked(graph.node, known, opset, node.seconds, node.boxed) for layer in inner.layers]
    return found


def undefined(name: str) -> Value:
    """Return what is known of a tensor that nothing defines."""
    return Value(name, None, bound=math.inf, causes=(f"tensor {name!r} is used before it is defined",))


def visit(node: Node) -> list[Value]:
    """Return the outputs of a node; one that a rule fails at has no bound, and every other node its own."""
    try:
        return ruled(node)
    except (AuditError, MemoryError):
        raise
    except Exception as error:  # a rule meets what nobody foresaw: a traceback would take the bounds of all the rest with it
        causes = causes_of(node) or (f"{node.place}: {unforeseen(error)}",)
        return [Value(name, None, bound=math.inf, causes=causes) for name in node.proto.output]


def ruled(node: Node) -> list[Value]:
    """Return the outputs of a node by its rule."""
    given = [value for value in node.inputs if value is not None]
    causes = causes_of(node)
    fixed = False
    formula = None
    try:
        refuse(node)
        found = constants.fold(node) or constants.sizes(node)
        if found is not None:
            return found
        formula = entries.formula_of(node)
        fixed = is_fixed(node, given, causes)
        if node.op not in RULES:
            raise NoBoundError(
                "no bound is known of this operator" if node.op not in constants.SIZES else "only a small constant has a rule"
            )
        results = RULES[node.op](with_sizes(node))
        results = [results] if isinstance(results, Value) else list(results)
        still(node)
    except NoBoundError as error:
        why = () if fixed else causes or (f"{node.place}: {error}",)
        shape = given[0].shape if given and error.rows else None
        bound = 0.0 if fixed else math.inf
        results = [Value(name, shape, bound=bound, causes=why, rows=error.rows) for name in node.proto.output]
    kept = [finished(node, value, place, formula[0] if formula else None) for place, value in enumerate(results)]
    first = kept[0] if formula is None else improved(node, kept[0], *formula)
    return [box.narrowed(node, first) if node.boxed else first, *kept[1:]]


def causes_of(node: Node) -> tuple[str, ...]:
    """Return what stood in the way of a bound before this node, each cause once."""
    return tuple(dict.fromkeys(cause for value in node.inputs if value is not None for cause in value.causes))


def still(node: Node) -> None:
    """Make sure that only the first input of a node moves, where its rule counts no other.

    Raises:
        NoBoundError: another does.
    """
    moving = [value.name for value in node.inputs[1:] if value is not None and not value.fixed]
    if moving and node.op not in SEVERAL:
        raise NoBoundError(f"its input {moving[0]!r} depends on the input")


def is_fixed(node: Node, given: list[Value], causes: tuple[str, ...]) -> bool:
    """Say whether what the node gives does not depend on the float inputs: it is computed from what does not, or from sizes alone."""
    too_large = node.op in constants.SIZES and node.op not in RULES and all(value.constant is not None for value in given)
    known = (node.op in RULES or onnx.defs.has(node.op)) and not too_large
    return known and node.op not in RANDOM and not causes and (node.op in SIZE_ONLY or (bool(given) and all(v.fixed for v in given)))


def finished(node: Node, value: Value, place: int, formula: Formula | None) -> Value:
    """Return a result with what it inherits: causes, notes, its maker and limits; a bound that is no number has a cause."""
    given = [v for v in node.inputs if v is not None]
    why = tuple(dict.fromkeys([*causes_of(node), *value.causes]))
    if not why and not math.isfinite(value.bound):
        why = (f"{node.place}: the bound grows beyond the largest float64",)
    return replace(
        value,
        bound=math.inf if why else value.bound,
        causes=why,
        notes=tuple(dict.fromkeys([*(note for v in given for note in v.notes), *value.notes])),
        maker=node,
        formula=formula if place == 0 else None,
        limits=entries.limits(node) if place == 0 or node.op in SHARED_LIMITS else (-math.inf, math.inf),
        channels=None,
    )


def improved(node: Node, value: Value, formula: Formula, notes: tuple[str, ...]) -> Value:
    """Return a result with the bound that follows from its formula, where that is smaller or the only one."""
    origin = formula.origin
    several = sum(v is not None and v.constant is None for v in node.inputs) > 1
    if origin.causes or not (several or node.boxed or not math.isfinite(value.bound)):
        return value
    slope = formulas.slope(formula.term, *origin.range)
    if not math.isfinite(slope):
        return value
    better = entrywise(node, origin, slope)
    if not better.bound < value.bound:
        return value
    return replace(better, notes=tuple(dict.fromkeys(origin.notes + notes)), maker=value.maker, formula=formula, limits=value.limits)


def refuse(node: Node) -> None:
    """Stop at what no rule may see.

    Raises:
        NoBoundError: another domain, a subgraph (which reads tensors that are not among the inputs), or a number that is not finite.
    """
    if not node.known_domain:
        raise NoBoundError(f"domain {node.proto.domain!r} is not known")
    if any(a.type in GRAPHS for a in node.proto.attribute):
        raise NoBoundError("it holds a graph of its own")
    if node.op not in NAN_ALLOWED and any(isinstance(a, float) and not math.isfinite(a) for a in node.attributes.values()):
        raise NoBoundError("it has an attribute that is not finite")
    for value in node.inputs:
        if value is not None and value.constant is not None and value.floating:
            numbers = value.constant.astype(np.float64)
            if np.isnan(numbers).any() or (node.op not in INFINITE_ALLOWED and not np.isfinite(numbers).all()):
                raise NoBoundError(f"its constant {value.name!r} holds a number that is not finite")


def with_sizes(node: Node) -> Node:
    """Return a Reshape whose target names sizes of its own input with a 0 ("as it was") in their place."""
    if node.op != "Reshape" or not node.present(1) or node.attribute("allowzero", 0):
        return node
    target, shape = node.input(1), node.input().shape
    if target.constant is not None or target.sizes is None or shape is None:
        return node
    filled: list[Dim] = [0 if isinstance(d, str) and i < len(shape) and shape[i] == d else d for i, d in enumerate(target.sizes)]
    if not all(isinstance(d, int) for d in filled):
        return node
    known = replace(target, constant=np.array([int(d) for d in filled], dtype=np.int64))
    return replace(node, inputs=(node.inputs[0], known), layers=node.layers)
