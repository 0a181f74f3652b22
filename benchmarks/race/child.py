"""One case in a process of its own, for its peak memory: `python -m benchmarks.race.child JSON`."""

from __future__ import annotations

import json
import sys
import time

from benchmarks.race import runners
from benchmarks.race.measure import memory
from benchmarks.race.setting import Setting


def main() -> None:
    task = json.loads(sys.argv[1])
    setting = Setting(**task["setting"])
    setting.encoder()
    before = memory()["now"]
    start = time.perf_counter()
    runners.RUNNERS[task["runner"]][0](setting, task["tile"], task["halo"], task["block"], task["out"])
    seconds = time.perf_counter() - start
    print(json.dumps({"before_mib": before, "peak_mib": memory()["peak"], "seconds": round(seconds, 2)}))


if __name__ == "__main__":
    main()
