"""Which clients may connect, as ``allow`` and ``deny``."""

from __future__ import annotations

from collections.abc import Iterable

from .networks import EVERYBODY, networks
from .service import Service


def admit(service: Service, only: Iterable[str] | None, refused: Iterable[str], names: tuple[str, str]) -> None:
    """Set the lists. A rule that can't be translated never admits more clients than before.

    :param only: the clients that are admitted; None: all.
    :param names: what the old config calls the two lists.
    """
    denied, unknown = networks(refused)
    if unknown:
        service.held_back.append(
            f"{names[1]} = {' '.join(unknown)}: no counterpart, names are not looked up; write addresses in `deny`"
        )
    allowed: list[str] = []
    if only is not None:
        allowed, unknown = networks(only)
        if unknown:
            service.lose(
                f"{names[0]} = {' '.join(unknown)}", "no counterpart, names are not looked up: write their addresses"
            )
        allowed = [network for network in allowed if network not in denied]
        if not allowed:
            denied = list(EVERYBODY)
            service.lose(names[0], "no address is left in it, so no client is admitted")
    if service.bind and all(address.startswith("unix:") for address in service.bind):
        return  # clients of a unix socket have no address
    if allowed:
        service.set("allow", allowed, names[0])
    if denied:
        service.set("deny", denied, names[1] if refused else "")
