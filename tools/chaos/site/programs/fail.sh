#!/bin/sh
# Fails, with a line on standard error.
echo 'it fails' >&2
printf 'Content-Type: text/plain\n\n'
exit 3
