"""Files that two readers may read in two ways: what is proved of one reading says nothing of the other, so nothing is."""

from collections import Counter

import onnx

from export.audit.report import AuditError

BUILT_IN = ("ai.onnx", "com.microsoft", "com.ms.", "org.pytorch.aten")
"""Domains, or their beginnings, whose operators a runtime brings with it."""


def refuse(model: onnx.ModelProto) -> None:
    """Stop at what is ambiguous.

    Raises:
        AuditError: a constant is there twice, a function takes the place of an operator, or the operators have two versions.
    """
    names = [tensor.name for tensor in model.graph.initializer] + [tensor.values.name for tensor in model.graph.sparse_initializer]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise AuditError(f"the constant {twice[0]!r} is there twice: runtimes differ on which of them counts")
    for function in model.functions:
        if not function.domain or function.domain.startswith(BUILT_IN):
            raise AuditError(f"the function {function.name!r} has the name of a built-in operator, which may be run instead")
    own = [opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    if len(set(own)) > 1:
        raise AuditError(f"the file names {len(own)} versions of ONNX's operators: {own}")
