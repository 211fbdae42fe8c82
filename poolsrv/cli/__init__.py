"""Short-lived commands. Imports core, ipc, config, worker, plugins and supervisor."""
