"""Chaos and soak: a server under a checked load, while nearly everything around it goes wrong.

``python -m tools.chaos`` disturbs, ``python -m tools.chaos.soak`` does not. `plan` says what happens when, from a seed;
`disturbances` do it; `load` has the clients; `books` note what became of each request; `attribution` finds the cause of
each one that was lost; `verdict` judges, `report` prints. `site/` is what the server serves.
"""
