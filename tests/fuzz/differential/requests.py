"""Requests that are nearly right, made of a seed: above all, in what tells where a message ends."""

from __future__ import annotations

import random

SENTINEL = b"GET /m9 HTTP/1.1\r\nHost: next\r\nConnection: close\r\n\r\n"
SMUGGLED = b"GET /m8 HTTP/1.1\r\nHost: inner\r\n\r\n"

ENDS = (
    b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r\n", b" \r\n", b"\r\n ", b"\0\r\n", b"\x0b\r\n", b"\x85\r\n",
    b"\r\n\t",
)  # fmt: skip
METHODS = (
    b"POST", b"GET", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"PATCH", b"post", b"FOO", b"P OST", b"GET\t",
)  # fmt: skip
VERSIONS = (
    b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/1.10", b"HTTP/1.", b"HTTP/2.0", b"http/1.1", b"HTTP/01.1",
    b"HTTP /1.1", b"HTTP/1.1 x", b"HTTP/0.9", b"",
)  # fmt: skip
CODINGS = (
    b"chunked", b"Chunked", b"CHUNKED", b"chunked ", b"\tchunked", b"chunked\t", b" , chunked", b"chunked,",
    b"chunked, chunked", b"identity", b"identity, chunked", b"chunked, identity", b"gzip, chunked",
    b"chunked, gzip", b"xchunked", b"chunkedx", b'"chunked"', b"chunked;q=1", b"chunked; a=b", b"\x0bchunked",
    b"\x0cchunked", b"chunked\0", b"chun\xc5\xbfed", b"cow", b"", b"chunked\r\n\tx", b"\r\n chunked",
    b"\xa0chunked", b"c hunked",
)  # fmt: skip
NAMES_OF_CODING = (
    b"Transfer-Encoding", b"transfer-encoding", b"Transfer-Encoding ", b" Transfer-Encoding",
    b"Transfer_Encoding", b"Transfer-Encoding\t", b"Transfer-Encoding\0", b"X: y\rTransfer-Encoding",
    b"X: y\nTransfer-Encoding", b"Transfer Encoding", b"TE", b"\0Transfer-Encoding", b"Transfer-Encoding\r\n",
    b"Transfer\xadEncoding",
)  # fmt: skip
LENGTH_FORMS = (
    b"%d", b"+%d", b"-%d", b"0%d", b"%d ", b"\t%d", b"%d\t", b"0x%x", b"%d,%d", b"%d, %d", b"%d.0", b"%d;",
    b"%d\0", b"\x0b%d", b'"%d"', b"%d a", b"1e%d", b"%d_0", b"%d\r\n 0", b"00000000000000000000%d", b"%d,",
    b",%d", b"", b"%d18446744073709551616", b"\xa0%d",
)  # fmt: skip
NAMES_OF_LENGTH = (
    b"Content-Length", b"content-length", b"Content-Length ", b" Content-Length", b"Content_Length",
    b"Content-Length\t", b"Content-Length\0", b"X: y\rContent-Length", b"X: y\nContent-Length",
    b"Content Length", b"Content-Length\r\n", b"Content-Length:",
)  # fmt: skip
OTHERS = (
    b"Connection: close", b"Connection: keep-alive", b"Connection: Content-Length",
    b"Connection: Transfer-Encoding", b"Expect: 100-continue", b"Upgrade: h2c", b"Upgrade: websocket",
    b"Host: b", b"X-A:", b"X-A", b": b", b" folded: x", b"\tx", b"X-A: \r b", b"X-A: \0", b"X-A: \x7f",
    b"X-A: \xff\xfe", b"X\x00A: b", b"X(A: b", b"X-A : b", b"Trailer: X", b"TE: trailers", b"X-A: a\r\n b",
    b"Keep-Alive: timeout=1", b"Proxy-Connection: close", b"Content-Encoding: gzip", b"X-HTTP-Method: GET",
)  # fmt: skip
SIZES = (
    b"%x", b"%X", b"0%x", b"0x%x", b"+%x", b"-%x", b" %x", b"%x ", b"%x\t", b"%x;a", b"%x;a=b", b'%x;a="b"',
    b'%x;a="\r\n"', b"%x;\n", b"%x a", b"%x;", b"%x;;", b"%x ; a", b"%x\0", b"0000000000000000000%x",
    b"1000000000000000%x", b"%x_", b"%x.0", b"\n%x", b"%x,", b"%x;a=\"\\\"", b"%x\x0b",
)  # fmt: skip


class Maker:
    """Makes requests, one after the other; the seed and the number of a request tell all of it."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def request(self, number: int) -> bytes:
        """What a client sends on one connection: some requests, and one more that is right."""
        chance = random.Random(f"{self._seed}/{number}")
        count = chance.choice((1, 1, 1, 2))
        data = b"".join(one_of(chance, index) for index in range(count))
        for _ in range(chance.choice((0, 0, 0, 0, 1, 2))):
            data = mutated(chance, data)
        return data + SENTINEL


class Choices:
    """What may be right or not: the first of several is, and is mostly taken."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self._wrong = chance.choice((0.01, 0.03, 0.1))  # how often another one is taken

    def pick(self, of: tuple[bytes, ...]) -> bytes:
        """One of these, mostly the first."""
        return self.chance.choice(of) if self.chance.random() < self._wrong else of[0]

    def is_wrong(self) -> bool:
        """Whether something else is to be wrong."""
        return self.chance.random() < self._wrong


def one_of(chance: random.Random, index: int) -> bytes:
    """One request with its body."""
    choices = Choices(chance)
    pick, any_of = choices.pick, chance.choice
    body = any_of((b"", b"x", b"hello", SMUGGLED, b"0\r\n\r\n", b"5\r\nhello\r\n0\r\n\r\n" + SMUGGLED))
    is_chunked, has_length = any_of(((True, False), (False, True), (False, True), (True, True), (False, False)))
    fields = [pick((b"Host: a", b"Host: a:b", b"", b"Host:a\r\nHost:a"))]
    if is_chunked:
        fields.append(pick(NAMES_OF_CODING) + any_of((b":", b": ")) + pick(CODINGS))
    if has_length and (not is_chunked or choices.is_wrong()):
        fields.append(length_field(choices, body))
    if choices.is_wrong():
        fields.append(any_of((fields[-1], length_field(choices, body), b"Transfer-Encoding: " + pick(CODINGS))))
    if is_chunked != choices.is_wrong():
        body = chunked(choices, body)
    elif not has_length and not choices.is_wrong():
        body = b""
    fields += [any_of(OTHERS) for _ in range(any_of((0, 1, 2)) * choices.is_wrong())]
    if chance.randrange(3):
        chance.shuffle(fields)
    target = pick((b"/m%d", b"/m%d?a", b"http://h/m%d", b"//m%d", b"/m%d#a", b"m%d", b"/m%d\xff")) % index
    spaces = (b" ", b"  ", b"\t")
    line = pick(METHODS) + pick(spaces) + target + pick(spaces) + pick(VERSIONS)
    head = line + pick(ENDS) + b"".join(field + pick(ENDS) for field in fields if field)
    return pick((b"", b"\r\n", b"\n", b" ")) + head + pick(ENDS) + body


def length_field(choices: Choices, body: bytes) -> bytes:
    """A Content-Length."""
    form = choices.pick(LENGTH_FORMS)
    length = len(body) + (choices.chance.choice((1, -1)) if choices.is_wrong() else 0)
    value = form % ((length,) * form.count(b"%")) if b"%" in form else form
    return choices.pick(NAMES_OF_LENGTH) + choices.chance.choice((b":", b": ")) + value


def chunked(choices: Choices, body: bytes) -> bytes:
    """A body in chunks."""
    pick = choices.pick
    coded = b""
    if body:
        size = len(body) + (choices.chance.choice((1, -1)) if choices.is_wrong() else 0)
        coded = pick(SIZES) % max(size, 1) + pick(ENDS) + body + pick(ENDS)
    coded += pick((b"0", b"00", b"0;a", b"0 ", b"", b"-0", b"0x0")) + pick(ENDS)
    coded += pick((b"", b"X: y\r\n", b"Content-Length: 5\r\n", b"bad\r\n", b" folded\r\n", b"X: y\n"))
    return coded + pick(ENDS)


def mutated(chance: random.Random, data: bytes) -> bytes:
    """A byte or two changed, left out, doubled or moved."""
    at = chance.randrange(len(data) + 1)
    alphabet = b'\r\n\t \0:;,="\\0a5x\x0b\x80\xff'
    match chance.randrange(4):
        case 0:
            return data[:at] + bytes([chance.choice(alphabet)]) + data[at:]
        case 1:
            return data[:at] + data[at + 1 :]
        case 2:
            return data[:at] + bytes([chance.choice(alphabet)]) + data[at + 1 :]
        case _:
            other = chance.randrange(len(data) + 1)
            return data[:at] + data[min(at, other) : max(at, other)][:20] + data[at:]
