"""How long Hypothesis looks: modestly in ``make test``, and deeper where ``HYPOTHESIS_PROFILE=deep`` is set."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

IS_DEEP = os.environ.get("HYPOTHESIS_PROFILE") == "deep"
FACTOR = max(int(os.environ.get("FUZZ_SECONDS", "60")), 1) if IS_DEEP else 1


def machine_settings(examples: int, steps: int) -> settings:
    """The settings of a state machine's test.

    :param examples: runs in ``make test``; a deep run has as many more as it has seconds.
    :param steps: of a run; a deep one has twice as many.
    """
    return settings(
        deadline=None,
        suppress_health_check=list(HealthCheck),
        max_examples=examples * FACTOR,
        stateful_step_count=steps * (2 if IS_DEEP else 1),
    )
