"""Benchmarks: one `bench_<question>.py` each; `python -m benchmarks` runs them all, `python -m benchmarks NAME` one."""
