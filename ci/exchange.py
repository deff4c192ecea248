"""`mu cluster exchange` with a FIX client and an ITCH parser from PyPI. Usage: exchange.py MU FOLDER [--forge]."""

import collections
import json
import os
import signal
import socket
import subprocess
import sys
import time

import simplefix
from itchcpp.parser import MessageParser

PATIENCE_S = 60
SYMBOLS = ["ALPHA", "BRAVO", "CHARLIE"]


class Client:
    """As much of a FIX session as simplefix leaves to its users."""

    def __init__(self, name):
        self.name, self.out, self.sent, self.heard, self.sock = name, 1, {}, [], None

    def encode(self, kind, number, pairs, again=False):
        message = simplefix.FixMessage()
        message.append_pair(8, "FIX.4.4")
        message.append_pair(35, kind)
        message.append_pair(49, self.name)
        message.append_pair(56, "MU")
        message.append_pair(34, number)
        if again:
            message.append_pair(43, "Y")
        message.append_utc_timestamp(52, precision=3)
        for tag, value in pairs:
            message.append_pair(tag, value)
        return message.encode()

    def send(self, kind, pairs):
        number, self.out = self.out, self.out + 1
        self.sent[number] = (kind, pairs)
        self.sock.sendall(self.encode(kind, number, pairs))

    def connect(self, address):
        self.sock = socket.create_connection(address, timeout=PATIENCE_S)
        self.parser = simplefix.FixParser()
        self.send("A", [(98, 0), (108, 30)])

    def hear(self):
        """The next message; None when the connection ends."""
        while (message := self.parser.get_message()) is None:
            data = self.sock.recv(65536)
            if not data:
                return None
            self.parser.append_buffer(data)
        text = lambda tag: (message.get(tag) or b"").decode()
        if text(35) == "2":
            for number in range(int(text(7)), self.out):
                kind, pairs = self.sent[number]
                if kind in "DFG":
                    self.sock.sendall(self.encode(kind, number, pairs, again=True))
                else:
                    self.sock.sendall(self.encode("4", number, [(123, "Y"), (36, number + 1)], again=True))
        if text(35) in "89" and text(17) not in [heard["17"] for heard in self.heard if heard["17"]]:
            tags = (11, 17, 37, 39, 41, 55, 54, 44, 151, 14, 150, 58)
            self.heard.append({str(tag): text(tag) for tag in tags})
        return text

    def until(self, holds):
        while not holds():
            assert self.hear() is not None, "the connection ended"

    def reports(self, name, kind):
        return [heard for heard in self.heard if heard["11"] == name and heard["150"] == kind]


def ask(node, line):
    with socket.create_connection((node["host"], node["port"]), timeout=PATIENCE_S) as sock:
        sock.sendall(line.encode() + b"\nquit\n")
        return sock.makefile().read()


def wait(what, holds):
    begin = time.monotonic()
    while True:
        try:
            if (held := holds()):
                return held
        except OSError:
            pass
        assert time.monotonic() - begin < PATIENCE_S, f"waiting for {what}"
        time.sleep(0.05)


def status(node):
    return json.loads(ask(node, "status"))


def leader(nodes):
    def find():
        for node in nodes:
            try:
                if status(node)["role"] == "leader":
                    return node
            except OSError:
                pass
    return wait("a leader", find)


def order(n, side, price, quantity=100, **more):
    pairs = [(11, f"n{n}"), (55, SYMBOLS[n % 3]), (54, side), (38, quantity), (40, 2), (44, f"{price:.2f}")]
    return pairs + [(int(tag[1:]), value) for tag, value in more.items()]


def trade(client, nodes):
    """Orders, the leader killed with some of them on their way, and more orders."""
    prices = {}
    for n in range(300):
        side = 1 + n % 2
        away = (n // 6) % 7 - (2 if n % 10 == 0 else 0)
        prices[n] = 50 + (away if side == 2 else -away) * 0.05
        client.send("D", order(n, side, prices[n]))
    for n in range(0, 100, 3):
        client.send("F", [(11, f"c{n}"), (41, f"n{n}"), (55, SYMBOLS[n % 3]), (54, 1 + n % 2)])
    for n in range(1, 100, 9):
        # Smaller in its place, or elsewhere.
        price = prices[n] if n % 2 else 49
        pairs = order(n, 1 + n % 2, price, quantity=50)
        client.send("G", [(11, f"r{n}"), (41, f"n{n}")] + pairs[1:])
    client.send("D", order(900, 1, 60, quantity=100000, t59=3))
    client.send("D", order(901, 1, 60, quantity=100000, t59=4))
    client.until(lambda: client.reports("n901", "4"))
    for n in range(300, 400):
        client.send("D", order(n, 1 + n % 2, 50 + 0.05 * (n % 5) * (1 if n % 2 else -1)))
    first = leader(nodes)
    os.kill(first["pid"], signal.SIGKILL)
    killed = time.monotonic()
    try:
        while client.hear() is not None:
            pass
    except OSError:
        pass
    second = leader([node for node in nodes if node is not first])
    client.connect((second["host"], second["port"]))
    client.send("1", [(112, "after")])
    while (text := client.hear()) is not None and text(112) != "after":
        pass
    print(f"the session goes on {1000 * (time.monotonic() - killed):.0f} ms after the kill")
    names = [f"n{n}" for n in range(400)]
    # What the dead leader had decided and not said is asked for.
    client.send("2", [(7, 1), (16, 0)])
    client.until(lambda: all(client.reports(name, "0") for name in names))
    for name in names:
        assert len(client.reports(name, "0")) == 1, f"{name} was taken {len(client.reports(name, '0'))} times"
    # A retry of what was answered is not carried out again.
    number = max(client.sent)
    known = next(n for n, (kind, _) in sorted(client.sent.items(), reverse=True) if kind == "D")
    client.sock.sendall(client.encode("D", known, client.sent[known][1], again=True))
    client.send("1", [(112, "still")])
    while (text := client.hear()) is not None and text(112) != "still":
        pass
    assert client.out == number + 2
    return first


def feed(path):
    """Shares by order, per symbol, as a parser that is not ours reads the file."""
    shares, kinds = {}, collections.Counter()
    with open(path, "rb") as file:
        for message in MessageParser().parse_file(file):
            kind = message.message_type.decode()
            kinds[kind] += 1
            if kind == "A":
                shares[message.order_reference_number] = [message.stock.decode().strip(), message.shares]
            elif kind in "EX":
                less = message.executed_shares if kind == "E" else message.cancelled_shares
                shares[message.order_reference_number][1] -= less
                if shares[message.order_reference_number][1] == 0:
                    del shares[message.order_reference_number]
            elif kind == "D":
                del shares[message.order_reference_number]
    return {id: tuple(entry) for id, entry in shares.items()}, kinds


def main(mu, folder, forge):
    # A busy machine is not to change the leader; a process that dies is found without heartbeats.
    calm = ["--set", "heartbeat_us = 1000", "--set", "detect_us = 2000000"]
    command = [mu, "cluster", "exchange", "--json", "--dir", folder, *calm, "--", "--itch", "feed.itch"]
    cluster = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        ready = json.loads(cluster.stdout.readline())
        assert ready["ready"] and sorted(node["role"] for node in ready["nodes"]) == ["follower", "follower", "leader"]
        nodes = ready["nodes"]
        follower = next(node for node in nodes if node["role"] == "follower")
        lead = leader(nodes)
        wait("a follower that knows the leader", lambda: status(follower)["leader"] == lead["id"])
        client = Client("PY")
        client.connect((follower["host"], follower["port"]))
        text = client.hear()
        assert text(35) == "5" and f"{lead['host']}:{lead['port']}" in text(58), text(58)
        client.connect((lead["host"], lead["port"]))
        while client.hear()(35) != "A":
            pass
        killed = trade(client, nodes)
        wait("the killed node as a follower", lambda: status(killed)["role"] == "follower")

        def same():
            all = [status(node) for node in nodes]
            return all if len({picture["index"] for picture in all}) == 1 else None
        pictures = wait("all at the same entry", same)
        for picture, node in zip(pictures, nodes):
            picture["books_hash"] = ask(node, "hash").strip()
            assert len(picture["books_hash"]) == 16, picture
        for key in ("books_hash", "trade_hash", "orders", "trades", "resting"):
            assert len({picture[key] for picture in pictures}) == 1, (key, pictures)
        assert pictures[0]["trades"] > 20, pictures[0]
        books = {}
        for symbol in SYMBOLS:
            texts = {ask(node, f"book {symbol}") for node in nodes}
            assert len(texts) == 1, f"the queues of {symbol} differ"
            for line in texts.pop().splitlines()[:-1]:
                _, _, quantity, id = line.split()
                books[int(id)] = (symbol, int(quantity))
        assert len(books) == pictures[0]["resting"]
        if forge:
            books.popitem()
        for node in nodes:
            found, kinds = feed(f"{folder}/node-{node['id']}/feed.itch")
            # That of the killed node begins with the books that it got from the others.
            wanted = "SRA" if node is killed else "SRAEXD"
            assert set(wanted) <= set(kinds), (node["id"], kinds)
            assert found == books, f"the feed of node {node['id']} adds up to another book"
            print(f"node {node['id']}: {sum(kinds.values())} ITCH messages, the book they add up to is the node's")
        cluster.send_signal(signal.SIGTERM)
        assert cluster.wait(PATIENCE_S) == 0
        for node in ready["nodes"]:
            assert not os.path.exists(f"/proc/{node['pid']}"), f"process {node['pid']} is left over"
    finally:
        cluster.kill()
        cluster.wait()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], "--forge" in sys.argv[3:])
