"""The story of a compile on one page: check, plan, compile, sweep, evaluate."""
