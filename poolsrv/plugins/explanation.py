"""What would answer a client, and why: the listener, who may connect, and what the handler says."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from ..config.model import ListenerConfig
from ..core.words import counted, did_you_mean, quoted, shortlist
from ..net.access_list import AccessList, number_of
from ..net.addresses import Address
from ..worker.spec import ListenerSpec, ServerSpec
from .blame import blamed
from .discovery import PluginError

Rows = Iterator[tuple[str, str]]

_PORTS = {"http": 80, "https": 443}


class NotExplained(Exception):
    """The question can't be answered; the message says why."""


def find_listener(server: ServerSpec, question: str, name: str | None) -> ListenerSpec:
    """Find the listener that a question is about.

    :param question: a URL, unless there is a name.
    :raises NotExplained: there is none, or more than one.
    """
    names = [listener.config.name for listener in server.listeners]
    if name is not None:
        if name not in names:
            hint = did_you_mean(name, names)
            raise NotExplained(f"no listener {quoted(name)}{hint}, expected {shortlist(map(quoted, names))}")
        return server.listeners[names.index(name)]
    if question.startswith(("http://", "https://")):
        return _by_url(server, question)
    if len(names) == 1:
        return server.listeners[0]
    raise NotExplained(
        f"which listener? expected a URL such as http://127.0.0.1:8080/, or --listener NAME: {', '.join(names)}"
    )


def explain(listener: ListenerSpec, question: str, client: str | None) -> Rows:
    """Explain in pairs of a label and a text.

    :param client: the address of a client, to be judged by ``allow`` and ``deny``.
    :raises NotExplained: the handler can't say, or the question is none.
    """
    config = listener.config
    yield "listener", f"{config.name} on {', '.join(map(str, config.bind))}"
    yield "plugins", " > ".join((*config.plugins, config.handler))
    if listener.server_tls is not None and question.startswith("http:"):
        yield "refused", "this listener speaks TLS: the URL has to begin with https:"
        return
    if listener.server_tls is None and question.startswith("https:"):
        yield "refused", "this listener does not speak TLS: the URL has to begin with http:"
        return
    if client is None:
        yield from _access(config)
    else:
        address = number_of(client)
        if address is None:
            raise NotExplained(f"{quoted(client)} is not an IP address")
        refusal = AccessList(config.allow, config.deny).refusal(*address)
        yield "client", f"{client}: {f'refused, {refusal}' if refusal else 'admitted by allow and deny'}"
        if refusal:
            return
    yield from _limits(listener)
    handler = listener.hooks.plugins[-1].instance
    method = getattr(handler, "explain", None)
    if method is None:
        yield "then", f"the handler {quoted(config.handler)} answers; it does not explain what"
        return
    yield from _said_by(method, question, config.handler)


def _said_by(method: Any, question: str, name: str) -> list[tuple[str, str]]:
    """What a handler's own ``explain`` says.

    :raises NotExplained: the question is none, or the method fails.
    """
    try:
        with blamed("failed in explain"):
            try:
                return [(str(label), str(text)) for label, text in method(question)]
            except ValueError as error:
                refused = f"{quoted(question)}: {error}"
    except PluginError as error:
        refused = f"the plugin {quoted(name)} {error}"
    raise NotExplained(refused)


def _access(config: ListenerConfig) -> Rows:
    for key, networks in (("allow", config.allow), ("deny", config.deny)):
        if networks:
            yield key, f"{', '.join(map(str, networks))} (try a client by --client ADDRESS)"


def _limits(listener: ListenerSpec) -> Rows:
    config = listener.config
    if config.max_connections:
        yield "max_connections", f"{config.max_connections}, beyond it clients {_beyond(config.when_full)}"
    if config.connection_rate:
        yield "connection_rate", f"{config.connection_rate:g} a second, beyond it clients {_beyond(config.when_full)}"
    if config.max_per_source:
        yield "max_per_source", f"{counted(config.max_per_source, 'connection')} of one source, others are refused"
    if config.rate_per_source:
        yield "rate_per_source", f"{config.rate_per_source:g} a second of one source, others are refused"


def _beyond(when_full: str) -> str:
    return "wait" if when_full == "wait" else "are refused"


def _by_url(server: ServerSpec, url: str) -> ListenerSpec:
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
    except ValueError as error:
        raise NotExplained(f"{quoted(url)} is not a URL: {error}") from None
    fitting = [
        listener
        for listener in server.listeners
        if any(_fits(address, parts.hostname or "", port) for address in listener.config.bind)
    ]
    if not fitting:
        raise NotExplained(
            f"no listener is bound to port {port} of {parts.hostname}, expected one of the config's, or --listener NAME"
        )
    exact = [
        listener for listener in fitting if any(address.host == parts.hostname for address in listener.config.bind)
    ]
    found = exact or fitting
    if len(found) > 1:
        names = ", ".join(listener.config.name for listener in found)
        raise NotExplained(f"more than one listener is bound to port {port}, expected --listener NAME, one of {names}")
    return found[0]


def _fits(address: Address, host: str, port: int) -> bool:
    """Whether a client that connects to the host would come to this address. A name may stand for any of them."""
    if address.port != port or not address.host:
        return False
    number = number_of(host)
    if number is None or address.dual:
        return True
    if address.host in ("0.0.0.0", "::"):
        return (":" in host) is (address.family == socket.AF_INET6)
    return number_of(address.host) == number
