#!/bin/sh
# Takes half a second, so that something can happen meanwhile.
printf 'Content-Type: text/plain\n\n'
for i in 1 2 3 4 5; do printf 'slow %s %s\n' "$QUERY_STRING" "$i"; sleep 0.1; done
