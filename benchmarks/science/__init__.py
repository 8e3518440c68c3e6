"""Published figures of the three steps beside ours: `python -m benchmarks.science`."""
