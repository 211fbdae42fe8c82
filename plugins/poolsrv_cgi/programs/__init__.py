"""Programs that run for clients, whatever the protocol: how many, how long, what they log, and how they end.

It runs in a worker; the counts that workers share are made before the fork. It imports the plugin API alone.
"""
