#!/usr/bin/env python3
"""Says which request it is, its client, and the checksum of its body."""

import hashlib
import os
import sys

size = int(os.environ.get("CONTENT_LENGTH") or 0)
digest = hashlib.sha256()
while size > 0 and (piece := sys.stdin.buffer.read(min(size, 65536))):
    digest.update(piece)
    size -= len(piece)
sys.stdout.write("Content-Type: text/plain\n\n")
sys.stdout.write(f"warm {os.environ['QUERY_STRING']} {os.environ.get('REMOTE_ADDR', '')} {digest.hexdigest()}\n")
