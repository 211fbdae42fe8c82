"""The dispatcher. Accepts connections, chooses a worker for each, limits clients, starts and replaces workers.
Imports core, ipc, net, config, worker and plugins."""
