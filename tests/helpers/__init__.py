"""Helpers that tests share: servers, clients, plugins, programs."""
