#!/bin/sh
# For the protocol of one line: its arguments, then as many zeros as the last of them says.
printf 'line %s\n' "$*"
for last; do :; done
head -c "$last" /dev/zero
