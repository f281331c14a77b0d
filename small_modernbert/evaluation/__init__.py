"""How good vectors are: metrics, search, what a run is watched by, the benchmark."""
