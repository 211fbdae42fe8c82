"""The supervisor's process: keeps the listening sockets, starts pools, outlives reloads. Imports ``core`` and ``ipc``,
and nothing but the standard library beside them."""
