"""Workers. Connections, and the hooks of plugins with their calls. Imports core, ipc, net and config."""
