"""The race: `embed().deo.to_zarr()` beside the bare encoder and beside what a user would write instead.

`python -m benchmarks.race` runs every part; `--parts` chooses. Modules: `setting` (cube and encoder), `runners` (who
races), `measure` (rounds, memory, workers), `table` (ratios with intervals, and the tables of docs/throughput.md).
"""
