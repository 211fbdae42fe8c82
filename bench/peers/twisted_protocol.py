"""Echo with a Twisted Protocol on the epoll reactor, as its documentation shows it."""

import sys

from twisted.internet import epollreactor

epollreactor.install()

from twisted.internet import interfaces, protocol, reactor  # noqa: E402  the reactor is chosen before the import


class Echo(protocol.Protocol):
    """One client's connection."""

    def connectionMade(self) -> None:
        # Backpressure: without it a client that does not read fills the memory.
        if interfaces.IPushProducer.providedBy(self.transport):
            self.transport.registerProducer(self.transport, True)

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(data)


if __name__ == "__main__":
    factory = protocol.Factory.forProtocol(Echo)
    factory.noisy = False
    reactor.listenTCP(int(sys.argv[1]), factory, backlog=4096, interface="127.0.0.1")
    reactor.run()
