"""The commands: what each of them does to the store, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from .protocol import EMPTY, NIL, OK, array, bulk, error, integer, number
from .store import Store, now

VERSION: Final = b"7.0.0"  # of Redis, for clients that ask

Arguments = Sequence[bytes]


class CommandError(Exception):
    """The answer to a request that can't be granted; the connection goes on."""


class Command(NamedTuple):
    """What a command is.

    :ivar least: arguments that it needs.
    :ivar most: arguments that it takes; None: any number.
    :ivar writes: whether it changes something.
    :ivar grows: whether it needs memory.
    """

    run: Callable[[Store, Arguments], bytes]
    least: int = 0
    most: int | None = None
    writes: bool = False
    grows: bool = False


def ping(store: Store, arguments: Arguments) -> bytes:
    return bulk(arguments[0]) if arguments else b"+PONG\r\n"


def echo(store: Store, arguments: Arguments) -> bytes:
    return bulk(arguments[0])


def get(store: Store, arguments: Arguments) -> bytes:
    return bulk(store.get(arguments[0]))


def mset(store: Store, arguments: Arguments) -> bytes:
    if len(arguments) % 2:
        raise CommandError("ERR wrong number of arguments for 'mset' command")
    for key, value in zip(arguments[::2], arguments[1::2], strict=True):
        store.set(key, value)
    return OK


def set_(store: Store, arguments: Arguments) -> bytes:
    key, value, *options = arguments
    before = store.get(key)
    chosen = _set_options(options)
    names = chosen.keys()
    expiry = next((chosen[name] for name in names if name in _TIMES), None)
    if b"KEEPTTL" in names and before is not None:
        expiry = store.expiry(key)
    answer = bulk(before) if b"GET" in names else OK
    if (b"NX" in names and before is not None) or (b"XX" in names and before is None):
        return answer if b"GET" in names else NIL
    store.set(key, value, expiry)
    return answer


_TIMES: Final = (b"EX", b"PX", b"EXAT", b"PXAT")
_ONE_OF: Final = ((*_TIMES, b"KEEPTTL"), (b"NX", b"XX"))


def _set_options(options: Arguments) -> dict[bytes, int | None]:
    """The options of SET; those that are a time, with it."""
    chosen: dict[bytes, int | None] = {}
    rest = iter(options)
    for option in rest:
        name = option.upper()
        if name in _TIMES:
            chosen[name] = _time(name, next(rest, None), "set")
        elif name in (b"NX", b"XX", b"KEEPTTL", b"GET"):
            chosen[name] = None
        else:
            raise CommandError("ERR syntax error")
    if any(sum(name in chosen for name in group) > 1 for group in _ONE_OF):
        raise CommandError("ERR syntax error")
    return chosen


def _time(unit: bytes, text: bytes | None, command: str) -> int:
    """When something expires, in milliseconds since the epoch."""
    if text is None:
        raise CommandError("ERR syntax error")
    amount = _integer(text)
    milliseconds = amount * 1000 if unit in (b"EX", b"EXAT") else amount
    if unit in (b"EX", b"PX"):
        milliseconds += now()
    if (amount <= 0 and command == "set") or not -(2**63) <= milliseconds < 2**63:
        raise CommandError(f"ERR invalid expire time in '{command}' command")
    return milliseconds


def _integer(text: bytes) -> int:
    value = integer(text)
    if value is None:
        raise CommandError("ERR value is not an integer or out of range")
    return value


def delete(store: Store, arguments: Arguments) -> bytes:
    count = 0
    for key in arguments:
        if store.get(key) is not None:
            store.delete(key)
            count += 1
    return number(count)


def exists(store: Store, arguments: Arguments) -> bytes:
    return number(sum(store.get(key) is not None for key in arguments))


def _add(store: Store, key: bytes, amount: int) -> bytes:
    result = _integer(store.get(key) or b"0") + amount
    if not -(2**63) <= result < 2**63:
        raise CommandError("ERR increment or decrement would overflow")
    store.set(key, b"%d" % result, store.expiry(key))
    return number(result)


def incr(store: Store, arguments: Arguments) -> bytes:
    return _add(store, arguments[0], 1)


def decr(store: Store, arguments: Arguments) -> bytes:
    return _add(store, arguments[0], -1)


def incrby(store: Store, arguments: Arguments) -> bytes:
    return _add(store, arguments[0], _integer(arguments[1]))


def ttl(store: Store, arguments: Arguments) -> bytes:
    left = _left(store, arguments[0])
    return number(left if left < 0 else (left + 500) // 1000)


def pttl(store: Store, arguments: Arguments) -> bytes:
    return number(_left(store, arguments[0]))


def _left(store: Store, key: bytes) -> int:
    """Milliseconds until a key expires; -1: never; -2: there is none."""
    if store.get(key) is None:
        return -2
    expiry = store.expiry(key)
    return -1 if expiry is None else max(expiry - now(), 0)


def _expire(store: Store, arguments: Arguments, unit: bytes, command: str) -> bytes:
    key, text = arguments
    expiry = _time(unit, text, command)
    if store.get(key) is None:
        return number(0)
    if expiry <= now():
        store.delete(key)
    else:
        store.expire(key, expiry)
    return number(1)


def expire(store: Store, arguments: Arguments) -> bytes:
    return _expire(store, arguments, b"EX", "expire")


def pexpire(store: Store, arguments: Arguments) -> bytes:
    return _expire(store, arguments, b"PX", "pexpire")


def pexpireat(store: Store, arguments: Arguments) -> bytes:
    return _expire(store, arguments, b"PXAT", "pexpireat")


def persist(store: Store, arguments: Arguments) -> bytes:
    if store.get(arguments[0]) is None or store.expiry(arguments[0]) is None:
        return number(0)
    store.expire(arguments[0], None)
    return number(1)


def dbsize(store: Store, arguments: Arguments) -> bytes:
    return number(len(store))


def flushall(store: Store, arguments: Arguments) -> bytes:
    store.clear()
    return OK


def command(store: Store, arguments: Arguments) -> bytes:
    """What redis-cli asks for its hints: it does without."""
    return number(len(COMMANDS)) if [one.upper() for one in arguments] == [b"COUNT"] else EMPTY


def config(store: Store, arguments: Arguments) -> bytes:
    """What redis-benchmark asks before it begins."""
    if arguments[0].upper() != b"GET":
        raise CommandError("ERR the configuration is in poolsrv's own file")
    known = {b"save": b"", b"appendonly": b"yes"}
    names = [name.lower() for name in arguments[1:]]
    return array(bulk(text) for name in names if name in known for text in (name, known[name]))


def client(store: Store, arguments: Arguments) -> bytes:
    """What client libraries tell of themselves."""
    if arguments[0].upper() in (b"SETNAME", b"SETINFO", b"NO-EVICT", b"NO-TOUCH"):
        return OK
    raise CommandError("ERR unknown subcommand of CLIENT")


def hello(store: Store, arguments: Arguments) -> bytes:
    if arguments and arguments[0] != b"2":
        raise CommandError("NOPROTO unsupported protocol version")
    about = (b"server", b"redis", b"version", VERSION, b"mode", b"standalone", b"role", b"master")
    return array([*map(bulk, about), bulk(b"proto"), number(2)])


def select(store: Store, arguments: Arguments) -> bytes:
    if arguments[0] != b"0":
        raise CommandError("ERR DB index is out of range")
    return OK


def info(store: Store, arguments: Arguments) -> bytes:
    text = f"# Server\r\nredis_version:{VERSION.decode()}\r\n# Memory\r\nused_memory:{store.used}\r\n"
    return bulk(f"{text}# Keyspace\r\ndb0:keys={len(store)}\r\n".encode())


COMMANDS: Final = {
    b"PING": Command(ping, 0, 1),
    b"ECHO": Command(echo, 1, 1),
    b"GET": Command(get, 1, 1),
    b"MSET": Command(mset, 2, writes=True, grows=True),
    b"SET": Command(set_, 2, writes=True, grows=True),
    b"DEL": Command(delete, 1, writes=True),
    b"EXISTS": Command(exists, 1),
    b"INCR": Command(incr, 1, 1, writes=True, grows=True),
    b"DECR": Command(decr, 1, 1, writes=True, grows=True),
    b"INCRBY": Command(incrby, 2, 2, writes=True, grows=True),
    b"TTL": Command(ttl, 1, 1),
    b"PTTL": Command(pttl, 1, 1),
    b"EXPIRE": Command(expire, 2, 2, writes=True),
    b"PEXPIRE": Command(pexpire, 2, 2, writes=True),
    b"PEXPIREAT": Command(pexpireat, 2, 2, writes=True),
    b"PERSIST": Command(persist, 1, 1, writes=True),
    b"DBSIZE": Command(dbsize, 0, 0),
    b"FLUSHALL": Command(flushall, 0, 1, writes=True),
    b"COMMAND": Command(command),
    b"CONFIG": Command(config, 1),
    b"CLIENT": Command(client, 1),
    b"HELLO": Command(hello),
    b"SELECT": Command(select, 1, 1),
    b"INFO": Command(info),
}


def find(arguments: Arguments) -> Command:
    """The command that a request names.

    :raises CommandError: there is none, or it takes another number of arguments.
    """
    name = arguments[0]
    found = COMMANDS.get(name.upper())
    shown = name[:128].decode(errors="replace")
    if found is None:
        raise CommandError(f"ERR unknown command '{shown}'")
    count = len(arguments) - 1
    if count < found.least or (found.most is not None and count > found.most):
        raise CommandError(f"ERR wrong number of arguments for '{shown.lower()}' command")
    return found


def run(command: Command, store: Store, arguments: Arguments) -> bytes:
    """The answer to a request.

    :param arguments: with the name.
    """
    try:
        return command.run(store, arguments[1:])
    except CommandError as wrong:
        return error(str(wrong))
