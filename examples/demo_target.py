"""The process that the demo observes: an ordinary program with threads, which knows nothing of us.

Three threads allocate, each in its own way. The main thread answers each number N on standard input with the
nanoseconds of its CPU time that N allocations took. It ends when its input ends.
"""

import sys
import threading
import time


def work(name: str, sizes: tuple[int, ...], pause: float) -> None:
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as comm:
        comm.write(name)
    kept = []
    while True:
        kept = [bytearray(size) for size in sizes]
        time.sleep(pause)
        kept.clear()


def main() -> None:
    for name, sizes, pause in (
        ("parser", (600, 700, 900, 1500), 0.001),
        ("cache", (4096,) * 8, 0.005),
        ("images", (300_000, 1_000_000), 0.2),
    ):
        threading.Thread(target=work, args=(name, sizes, pause), daemon=True).start()
    print("ready", flush=True)
    for line in sys.stdin:
        count = range(int(line))
        start = time.thread_time_ns()
        for _ in count:
            bytearray(1024)
        print(time.thread_time_ns() - start, flush=True)


if __name__ == "__main__":
    main()
