#!/usr/bin/env python3
"""Uses memory until the kernel ends it, as the first of all."""

import time
from pathlib import Path

Path("/proc/self/oom_score_adj").write_text("1000")
eaten = []
for _ in range(4096):
    eaten.append(bytearray(b"x") * (1 << 20))
time.sleep(1)
