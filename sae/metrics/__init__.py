"""How good a run is: one function or accumulator a metric, the convention in its name."""
