"""Run a command; print its seconds, its peak memory, its exit code and what it said, as JSON.

    python -S launcher.py SECONDS COMMAND...

A script of its own without this package, because Linux counts what is resident in the process that starts another into
the peak of the one that is started: this one is small. After SECONDS the command is ended.
"""

import json
import os
import subprocess
import sys
import threading
import time


def main() -> None:
    """Run `sys.argv`."""
    started = time.perf_counter()
    process = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    timer = threading.Timer(float(sys.argv[1]), process.kill)
    timer.start()
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    timer.cancel()
    process.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    answer = {"seconds": seconds, "peak": peak, "code": process.returncode, "said": said.decode(errors="replace")}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
