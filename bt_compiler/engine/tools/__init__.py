"""Tools: functions that a program may call between its modules, typed, each call within a time limit."""

from bt_compiler.engine.tools.registry import Tool, open_tools

__all__ = ["Tool", "open_tools"]
