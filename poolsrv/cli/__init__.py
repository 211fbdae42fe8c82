"""The command line.

Each command is a short-lived process. Imports core, ipc, config, worker, plugins and supervisor.
"""
