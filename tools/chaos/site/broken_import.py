"""A plugin that can't be imported, for a config that must not be taken over."""

from __future__ import annotations

raise RuntimeError("this module can't be imported")
