"""What it costs to encode on a CPU under the `MALLOC_TRIM_THRESHOLD_` of Dask's nannies, and what is left of that.

`python -m benchmarks.memory_reuse`: processor milliseconds a tile on one thread, and page faults, each in a process of
its own: started plainly, started as a nanny starts its workers, and the same on deo_cube's threads.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time

TILES = {"vit_small_patch16_224": (256, 4), "tiny": (320, 1)}


def measure(model: str, tuned: bool) -> dict[str, float]:
    """Encode a dozen batches here."""
    import torch

    import deo_cube
    from benchmarks.throughput import encoder_of
    from deo_cube.embedding import process

    tile, batch = TILES[model]
    encoder = deo_cube.load_encoder(encoder_of(model, tile), device="cpu")
    noise = torch.rand(batch, len(encoder.stem.bands), tile, tile) * 3000
    torch.set_num_threads(1)

    def once() -> float:
        start = time.thread_time()
        encoder.encode(noise)
        return (time.thread_time() - start) / batch

    run = process.device_threads("cpu").submit if tuned else None
    for _ in range(3):
        _ = run(0, once).result() if run else once()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = [run(0, once).result() if run else once() for _ in range(12)]
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {"ms": 1000 * statistics.median(seconds), "faults": faults / 12 / batch}


def main() -> None:
    """Print the table."""
    print("| model | plain | under a nanny's setting | there, on deo_cube's threads |\n|---|---|---|---|")
    for model in TILES:
        row = []
        for nanny, tuned in ((False, False), (True, False), (True, True)):
            env = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
            env |= {"OMP_NUM_THREADS": "1"} | ({"MALLOC_TRIM_THRESHOLD_": "65536"} if nanny else {})
            command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory_reuse", model, str(int(tuned))]
            done = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
            found = json.loads(done.splitlines()[-1])
            row.append(f"{found['ms']:.0f} ms, {found['faults']:,.0f} faults")
        print(f"| {model} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], sys.argv[2] == "1")))
    else:
        main()
