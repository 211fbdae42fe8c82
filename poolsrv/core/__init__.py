"""What every process needs: the event loop, signals, logs, processes, and other parts of the kernel's interface.
Imports only the standard library, and no other package."""
