"""Speed and memory of steps, rollouts and conversions, beside other ways to do the same: what the commands tools/bench_….py measure."""
