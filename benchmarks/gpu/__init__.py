"""Measure `embed` on a GPU: ``python -m benchmarks.gpu --out gpu.json``.

Four parts, in this order; ``--only`` chooses some of them:

- *correctness*: vectors of the GPU beside those of the CPU, bit-identity under other chunks, blocks and batches, CUDA
  graphs, resumed stores, a real lack of memory, overlapping copies, two processes on one GPU
- *encoder*: the encoder alone over batch sizes, precisions and ``torch.compile``
- *embed*: km² per second of ``embed().deo.to_zarr()`` from a Zarr cube to a Zarr store
- *training*: one optimisation step of Swin-B

The JSON is rewritten after every step, so that a run which is cut short loses nothing. All four take less than eight
minutes on an H100.
"""
