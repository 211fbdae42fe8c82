"""Workers and the dispatcher. Addresses, byte streams, relays, TLS and programs. Knows no pool and no plugin.
Imports core."""
