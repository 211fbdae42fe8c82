"""Inputs that nobody thought of: fuzz targets, their kept corpus, and a differential fuzzer for HTTP.

A *target* (``targets/``) takes bytes, gives them to one parser, and fails if what that does breaks a rule. ``run`` has
atheris look for such bytes; ``test_corpus`` replays those that are kept. ``differential/`` gives the same requests to
poolsrv and to other servers.
"""
