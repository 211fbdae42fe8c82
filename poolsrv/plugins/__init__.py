"""Find, check and load plugins.

Runs in the dispatcher before it forks, and in commands. Imports core, net, config and worker.
"""
