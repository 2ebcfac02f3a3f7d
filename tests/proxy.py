"""A wire between clients and a server that breaks in every way in which wires break."""
import contextlib
import random
import socket
import struct
import sys
import threading
import time

RESET = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)  # SO_LINGER: closing is a reset


class Harm:
    """What a link does to the bytes that it carries: nothing here, something in those below."""

    def carry(self, link, way, data):
        """Take what came on its way "up" or "down" to the other end."""
        link.pass_on(way, data)


class ResetAt(Harm):
    """The link is reset when so many bytes have gone this way; all of them arrived before."""

    def __init__(self, way, bytes):
        self.way, self.left = way, bytes

    def carry(self, link, way, data):
        if way == self.way:
            data, self.left = data[:self.left], self.left - len(data)
        link.pass_on(way, data)
        if self.left <= 0:
            link.reset()


class Dripping(Harm):
    """One byte at a time."""

    def carry(self, link, way, data):
        for byte in data:
            link.pass_on(way, bytes([byte]))


class Merging(Harm):
    """Nothing for a fifth of a second, then all that came meanwhile at once."""

    def carry(self, link, way, data):
        link.pass_on(way, data)
        time.sleep(0.2)


class Stalling(Harm):
    """Now and then nothing for some seconds."""

    def __init__(self, seed, seconds=5.0):
        self.random, self.seconds = random.Random(seed), seconds

    def carry(self, link, way, data):
        if self.random.random() < 0.2:
            time.sleep(self.seconds)
        link.pass_on(way, data)


class Swallowing(Harm):
    """What goes these ways vanishes, and so does the news that an end has gone: no FIN, no reset."""

    def __init__(self, *ways):
        self.ways = ways

    def carry(self, link, way, data):
        if way not in self.ways:
            link.pass_on(way, data)


class Blocking(Harm):
    """Nothing is even taken from either end any more, so that their systems' buffers fill up."""

    def carry(self, link, way, data):
        link.over.wait()


class Link:
    """One connection through the proxy: two threads, one for each way."""

    def __init__(self, client, server, harm):
        self.ends = {"up": (client, server), "down": (server, client)}
        self.harm, self.over = harm, threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(way,), daemon=True) for way in self.ends]
        for thread in self.threads:
            thread.start()

    def _run(self, way):
        source, target = self.ends[way]
        with contextlib.suppress(OSError):
            for data in iter(lambda: source.recv(1 << 16), b""):
                self.harm.carry(self, way, data)
        if not (self.over.is_set() or isinstance(self.harm, (Swallowing, Blocking))):
            with contextlib.suppress(OSError):
                target.shutdown(socket.SHUT_WR)

    def pass_on(self, way, data):
        """Send bytes that came this way to the other end."""
        if data:
            self.ends[way][1].sendall(data)

    def reset(self):
        """Break both halves at once."""
        self.over.set()
        for sock in self.ends["up"]:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.shutdown(socket.SHUT_RD)  # sends nothing, but a thread that waits in recv would keep it open
            sock.close()

    def close(self):
        """End it, if it still is there, and its threads."""
        self.over.set()
        for sock in self.ends["up"]:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(5)
        for sock in self.ends["up"]:
            sock.close()


class Proxy:
    """Listens beside a server, and carries each connection to it with the harm that was set for the next one."""

    def __init__(self, server):
        self.server, self.harm, self.links = server, Harm(), []
        self.refusing = False  # whether new connections are reset at once
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.address = self.listener.getsockname()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *trouble):
        self.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                try:
                    if self.refusing:
                        raise ConnectionRefusedError
                    server = socket.create_connection(self.server)
                except OSError:
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                    client.close()
                    continue
                for sock in (client, server):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                harm, self.harm = self.harm, Harm()
                self.links.append(Link(client, server, harm))

    def close(self):
        """End everything."""
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for link in self.links:
            link.close()
