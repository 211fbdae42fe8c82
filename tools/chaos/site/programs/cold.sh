#!/bin/sh
# Says which request it is, and the checksum of its body.
printf 'Content-Type: text/plain\n\ncold %s\n' "$QUERY_STRING"
if [ -n "$CONTENT_LENGTH" ]; then head -c "$CONTENT_LENGTH" | sha256sum; fi
