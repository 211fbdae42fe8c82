#!/usr/bin/env python3
"""Shows a program's environment: it has what CGI defines and what the config gives it, nothing else of the server's.

(LC_CTYPE, where it is there, is Python's own: it sets it at its start where no locale is set.)
"""

import os
import sys

sys.stdout.write("Content-Type: text/plain\r\n\r\n")
for name, value in sorted(os.environ.items()):
    sys.stdout.write(f"{name}={value}\n")
