"""Whose turn it is: cores, and GPUs that the threads of one process feed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

from pipeline import turns


def test_threads_share_the_gpus(monkeypatch):
    """Of two GPUs each is one thread's at a time, and both are used; how long is noted."""
    monkeypatch.setattr(turns, "gpu_count", lambda: 2)  # there need not be any here
    monkeypatch.setattr(turns, "_free_gpus", None)
    using, most, seen = set(), [], []
    lock = threading.Lock()

    def work(_):
        seconds = {"flow": 1.0}
        for _ in range(3):
            with turns.on_gpu(seconds) as device:
                with lock:
                    assert device not in using
                    using.add(device)
                    most.append(len(using))
                    seen.append(device)
                time.sleep(0.01)
                with lock:
                    using.remove(device)
        return seconds

    with ThreadPoolExecutor(8) as pool:
        noted = list(pool.map(work, range(8)))
    assert max(most) == 2
    assert set(seen) == {"cuda:0", "cuda:1"}
    assert all(seconds["flow"] == 1.0 and 0.03 <= seconds["gpu"] < 30 for seconds in noted)


def test_a_gpu_comes_back_after_an_error(monkeypatch):
    monkeypatch.setattr(turns, "gpu_count", lambda: 1)
    monkeypatch.setattr(turns, "_free_gpus", None)
    for _ in range(2):
        try:
            with turns.on_gpu({}) as device:
                assert device == "cuda:0"
                raise ValueError
        except ValueError:
            pass


def test_the_busy_share_counts_all_gpus(monkeypatch):
    monkeypatch.setattr(turns, "gpu_count", lambda: 2)
    assert turns.busy_share(30, 20) == 0.75
