"""From the config file to frozen structs, with every error at once.

Runs in the dispatcher and in commands. Imports core and net.
"""
