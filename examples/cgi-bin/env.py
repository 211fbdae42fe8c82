#!/usr/bin/env python3
"""Shows a program's environment: what CGI defines and what the config sets, and nothing else of the server's.

(If there is an LC_CTYPE, Python itself has set it at its start, because no locale was set.)
"""

import os
import sys

sys.stdout.write("Content-Type: text/plain\r\n\r\n")
for name, value in sorted(os.environ.items()):
    sys.stdout.write(f"{name}={value}\n")
