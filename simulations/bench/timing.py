"""How long something takes."""

import time
from collections.abc import Callable


def best(run: Callable[[], object], *, repeats: int) -> float:
    """Seconds of processor time of the fastest of some runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.thread_time()  # of this thread alone: what else runs on the machine does not count
        run()
        seconds.append(time.thread_time() - start)
    return min(seconds)
