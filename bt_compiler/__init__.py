"""Compiles declarative language-model programs: prompts and LoRA weights optimised in turn, one bundle as the result.

from bt_compiler import load
answer = load("artifacts/hotpotqa")(question="...").answer
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "BtcError",
    "InputError",
    "Outputs",
    "PredictionError",
    "Predictor",
    "__version__",
    "compile_spec",
    "load",
]

if TYPE_CHECKING:
    from bt_compiler.compiler.compile import compile_spec
    from bt_compiler.errors import BtcError
    from bt_compiler.runtime import InputError, Outputs, PredictionError, Predictor, load
else:
    # hidden from type checkers, for which every name would exist
    _HOMES = {"BtcError": "bt_compiler.errors", "compile_spec": "bt_compiler.compiler.compile"}

    def __getattr__(name: str) -> Any:
        """All but the version comes late, so that `import bt_compiler` and the command line's start cost nothing, and
        loading a bundle does not import the optimiser.
        """
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES.get(name, "bt_compiler.runtime")), name)

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
