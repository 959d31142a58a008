"""Compiles declarative language-model programs: prompts and LoRA weights optimised in turn, one bundle as the result.

from bt_compiler import load
answer = load("artifacts/hotpotqa")(question="...").answer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bt_compiler.runtime import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def __getattr__(name: str) -> Any:
    """`load` comes late, so that `import bt_compiler` and the command line's start cost nothing."""
    if name == "load":
        from bt_compiler.runtime import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
