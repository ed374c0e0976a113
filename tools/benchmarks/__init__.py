"""Speed and memory of one self-distillation step beside other ways to compute it (tools/bench_distill.py)."""
