"""The dispatcher and the commands. From the config file to frozen structs, with every error at once. Imports core
and net."""
