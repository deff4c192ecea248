"""Three processes of a program on libmu that answers lines (see capi/examples), their leader killed again and again.

    capi.py [--rounds N] [--lose] PROGRAM...

Clients add to counters; every command is tried with the same client and sequence until it is acknowledged. At the end
every counter must hold exactly what was acknowledged, on every replica. --lose is the control: one command is taken for
acknowledged without having been sent.
"""

import argparse
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time

CLIENTS = 8
COMMANDS = 40
PATIENCE_S = 30
OK, NOT_LEADER, UNKNOWN, BUSY, STOPPED, REPLY_GONE = "0", "1", "2", "4", "5", "11"


def write_config(folder, replicas, log_bytes=65536):
    """A cluster.toml and its key, with ports that are free now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(replicas)]
    members = "".join(f'    {{ id = {n}, control = "127.0.0.1:{s.getsockname()[1]}" }},\n'
                      for n, s in enumerate(sockets))
    for one in sockets:
        one.close()
    key = os.open(os.path.join(folder, "cluster.key"), os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(key, b"hex:" + os.urandom(32).hex().encode())
    os.close(key)
    path = os.path.join(folder, "cluster.toml")
    with open(path, "w") as file:
        file.write(f'cluster = "ci"\npsk_file = "cluster.key"\nlog_bytes = {log_bytes}\nreplicas = [\n{members}]\n')
    return path


class Died(Exception):
    pass


class Node:
    def __init__(self, program, config, ident, form):
        self.ident = ident
        self.child = subprocess.Popen([*program, config, str(ident), *(["form"] if form else [])],
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
        os.set_blocking(self.child.stderr.fileno(), False)
        self.buffer = b""
        if self.line() != "ready":
            raise Died(self.words())

    def words(self):
        return (self.child.stderr.read() or b"").decode(errors="replace")[-2000:]

    def send(self, line):
        try:
            self.child.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            raise Died(self.words()) from None

    def line(self):
        end = time.monotonic() + PATIENCE_S
        while b"\n" not in self.buffer:
            ready, _, _ = select.select([self.child.stdout], [], [], max(0, end - time.monotonic()))
            more = os.read(self.child.stdout.fileno(), 65536) if ready else None
            if more is None:
                sys.exit(f"replica {self.ident} gives no answer: {self.words()}")
            if not more:
                raise Died(self.words())
            self.buffer += more
        line, self.buffer = self.buffer.split(b"\n", 1)
        return line.decode()

    def ask(self, line):
        self.send(line)
        return self.line()

    def kill(self):
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()


class Group:
    def __init__(self, program, config):
        self.program, self.config = program, config
        self.nodes = {n: Node(program, config, n, True) for n in range(3)}

    def leader(self):
        """The node that says of itself that it leads."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for node in self.nodes.values():
                if node.ask("leader") == str(node.ident):
                    return node
            time.sleep(0.002)
        sys.exit("no replica leads: " + "".join(node.words() for node in self.nodes.values()))

    def restart(self, ident):
        self.nodes[ident] = Node(self.program, self.config, ident, False)

    def agree(self):
        """Waits until all replicas have a vote and say the same state. Without that a kill could be one too many."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            states = {node.ask("state") for node in self.nodes.values()}
            if len(states) == 1 and next(iter(states)).startswith("1 "):
                return states.pop()
            time.sleep(0.01)
        sys.exit(f"the replicas do not agree: {states}")


class Load:
    def __init__(self):
        self.sums = {}
        self.sequence = [0] * CLIENTS
        self.acknowledged = self.retries = 0

    def run(self, group, kill_at):
        """One round: every client does its commands, one in flight each; the leader is killed on the way."""
        todo = {client: COMMANDS for client in range(CLIENTS)}
        leader, sent, killed, fresh = group.leader(), 0, None, set(todo)
        while todo:
            asked = list(todo)
            try:
                for client in asked:
                    self.sequence[client] += client in fresh
                    fresh.discard(client)
                    leader.send(f"add {client + 1} {self.sequence[client]} {client} {client + 1}")
                    sent += 1
                    if sent == kill_at:
                        killed = leader.ident
                        leader.kill()
                for client in asked:
                    code, value = leader.line().split()
                    if code == OK:
                        self.acknowledge(client, int(value))
                        todo[client] -= 1
                        fresh.add(client)
                        if not todo[client]:
                            del todo[client]
                    elif code in (NOT_LEADER, UNKNOWN, BUSY, STOPPED):
                        self.retries += 1
                    else:
                        sys.exit(f"client {client + 1}: code {code}")
                    lost = code == NOT_LEADER
                if lost:
                    leader = group.leader()
            except Died:
                self.retries += 1
                if killed is None:
                    raise
                del group.nodes[killed]
                leader = group.leader()
        if killed in group.nodes:
            sys.exit(f"replica {killed} was killed, and nobody saw it")
        group.restart(killed)

    def acknowledge(self, client, value):
        self.acknowledged += 1
        self.sums[client] = self.sums.get(client, 0) + client + 1
        # Only this client adds to this counter, so the reply is known.
        if value != self.sums[client]:
            sys.exit(f"counter {client} is {value} after an acknowledged {self.sums[client]}: lost or applied twice")


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--lose", action="store_true")
    options.add_argument("program", nargs="+")
    options = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        group, load = Group(options.program, write_config(folder, 3)), Load()
        group.agree()
        for number in range(options.rounds):
            load.run(group, kill_at=50 + 37 * number % 200)
            state = group.agree()
        if options.lose:
            load.sums[3] += 4
        for client, wanted in sorted(load.sums.items()):
            code, value = group.leader().ask(f"get {client}").split()
            if (code, int(value)) != (OK, wanted):
                sys.exit(f"counter {client} is {value} (code {code}), and {wanted} was acknowledged")
        for node in group.nodes.values():
            node.child.stdin.close()
            if node.child.wait(PATIENCE_S) != 0:
                sys.exit(f"replica {node.ident} ended with {node.child.returncode}: {node.words()}")
    print(f"{load.acknowledged} acknowledged, {load.retries} retries, {options.rounds} kills, all at {state}")


if __name__ == "__main__":
    main()
