"""Sigma of every linear layer and an L2 Lipschitz bound of any ONNX graph, or the operator that stands in the way. No torch."""

from export.audit.report import AuditedLayer, AuditError, Report
from export.audit.walk import HINT, audit, certified

__all__ = ["HINT", "AuditError", "AuditedLayer", "Report", "audit", "certified"]
