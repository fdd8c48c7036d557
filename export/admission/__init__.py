"""Whether an ONNX file from elsewhere may be served: judged in a child process of bounded memory and time, before it is registered."""

from export.admission.admit import STANDARD, AdmissionError, Limits, admit

__all__ = ["STANDARD", "AdmissionError", "Limits", "admit"]
