"""Long random runs that look for wrong values, crashes and leaks. `python -m soak`; see docs/robustness.md."""
