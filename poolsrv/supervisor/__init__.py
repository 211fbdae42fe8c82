"""The supervisor. Keeps the listening sockets and starts pools. Outlives reloads. Imports core and ipc: nothing but
the standard library."""
