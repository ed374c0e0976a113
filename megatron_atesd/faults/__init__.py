"""Training jobs killed on purpose, and what must be left of them (tools/chaos.py)."""
