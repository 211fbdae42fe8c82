"""The dispatcher, before it forks, and the commands. Finds, checks and loads plugins. Imports core, net, config and
worker."""
