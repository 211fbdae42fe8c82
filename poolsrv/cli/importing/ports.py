"""The names of services, and their ports."""

from __future__ import annotations

import socket

from .service import Place, Service


def port_of(service: Service, name: str, place: Place) -> int | None:
    """The TCP port of a service.

    :param name: its name in /etc/services (services(5)), or a port.
    :returns: None if /etc/services does not have the name: then the service is held back.
    :raises BadSource: a number that is no port.
    """
    if name.isascii() and name.isdigit():
        if len(name) > 5 or not 0 < int(name) < 65536:
            raise place.mistake(f'"{name}" is not a port, expected a number from 1 to 65535')
        return int(name)
    try:
        return socket.getservbyname(name, "tcp")
    except (OSError, ValueError):
        service.held_back.append(f'"{name}" is not in /etc/services of this machine: its port is not known')
        return None
