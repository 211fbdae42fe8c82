"""Warm Python: a fork server for each interpreter that scripts name, and what a worker says to it.

`helper` is a process of its own that any Python runs, by its path, and imports nothing of the server. The other
modules run in a worker.
"""
