"""Fork from a warm interpreter, run a compiled script in the child, and wait for its end: N times in sequence.

The most that any server can reach on one core which forks a child for each script. There is no request, no environment,
no pipe and no log: the script's output goes to the null device. Prints one line of JSON.

usage: fork_loop.py N SCRIPT
"""

import gc
import os
import resource
import sys
import time


def main(total: int, script: str) -> None:
    with open(script, "rb") as file:
        code = compile(file.read(), script, "exec")
    null = os.open(os.devnull, os.O_RDWR)
    own_output = os.dup(1)
    os.dup2(null, 1)
    errors, start = 0, time.monotonic()
    gc.collect()
    gc.freeze()
    for _ in range(total):
        pid = os.fork()
        if not pid:
            exec(code, {"__name__": "__main__", "__file__": script})
            sys.stdout.flush()
            os._exit(0)
        errors += os.wait4(pid, 0)[1] != 0
    seconds = time.monotonic() - start
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(usage.ru_utime + usage.ru_stime for usage in used)
    line = f'{{"requests": {total}, "seconds": {seconds:.6f}, "errors": {errors}, "cpu_seconds": {cpu:.6f}}}\n'
    os.write(own_output, line.encode())


main(int(sys.argv[1]), sys.argv[2])
