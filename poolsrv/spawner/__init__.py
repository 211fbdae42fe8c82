"""The spawner's processes: they start the programs that run as another user than the pool."""
