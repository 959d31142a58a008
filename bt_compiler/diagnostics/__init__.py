"""What is said to a person about their input: sources, spans, diagnostics, their codes and their rendering.

The bottom of the layers: it knows text and positions, nothing of specs or programs.
"""

from bt_compiler.diagnostics.codes import CodeInfo, explain, known_codes
from bt_compiler.diagnostics.diagnostic import Diagnostic, Source, Span
from bt_compiler.diagnostics.render import MOST, foremost, render, to_json
from bt_compiler.diagnostics.suggest import did_you_mean, is_meant

__all__ = [
    "MOST",
    "CodeInfo",
    "Diagnostic",
    "Source",
    "Span",
    "did_you_mean",
    "explain",
    "foremost",
    "is_meant",
    "known_codes",
    "render",
    "to_json",
]
