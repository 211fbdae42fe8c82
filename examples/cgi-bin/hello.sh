#!/bin/sh
# Works over HTTP (CGI: header, blank line, body) and over the line protocol, which passes on all of it.
printf 'Content-Type: text/plain\r\n\r\n'
printf 'hello, %s\n' "${REMOTE_ADDR:-world}"
