"""Three nodes of a redis-server on mu, used through redis-py and its Sentinel client, with leaders killed and stopped.

    python3 replicated.py MU [--seed N] [--rounds N] [--only NAME]

MU is the program `mu`, with libmu_redis.so beside it. Prints what it checked, one line each; ends with status 1 and the
reason at the first thing that does not hold. The seed of a run repeats its choices."""

import argparse
import base64
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import redis
from redis.exceptions import ConnectionError, ReadOnlyError, ResponseError, TimeoutError
from redis.sentinel import MasterNotFoundError, Sentinel, SlaveNotFoundError

NAME = "mymaster"
PATIENCE_S = 40
LOST = (ConnectionError, TimeoutError, MasterNotFoundError, ReadOnlyError)


def check(holds, what):
    if not holds:
        raise AssertionError(what)


def until(what, holds, patience_s=PATIENCE_S):
    end = time.monotonic() + patience_s
    while True:
        try:
            value = holds()
            if value:
                return value
            last = value
        except (redis.RedisError, OSError) as error:
            last = repr(error)
        check(time.monotonic() < end, f"{what}: not within {patience_s} s; last: {last}")
        time.sleep(0.005)


class Group:
    """Three processes `mu redis`."""

    count = 0

    def __init__(self, mu, bug=None):
        self.mu, self.bug = mu, bug
        self.dir = tempfile.TemporaryDirectory(prefix="mu-redis-test-")
        # Below the ports that the kernel gives to connections, on a loopback address of this process.
        pid = os.getpid()
        self.host = f"127.{1 + (pid >> 16 & 63)}.{pid >> 8 & 255}.{pid & 255 or 1}"
        # The servers of a group before may take a moment to go.
        Group.count += 10
        self.ports = [11000 + Group.count + n for n in range(3)]
        path = os.path.join(self.dir.name, "cluster.key")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write("base64:" + base64.b64encode(os.urandom(32)).decode())
        entry = '{{ id = {n}, control = "{host}:{control}", client = "{host}:{port}" }},\n'
        replicas = "".join(entry.format(n=n, host=self.host, control=port + 1000, port=port)
                           for n, port in enumerate(self.ports))
        self.config = os.path.join(self.dir.name, "cluster.toml")
        with open(self.config, "w") as file:
            # A small command, so that turns come in parts.
            file.write(f'cluster = "{NAME}"\npsk_file = "cluster.key"\nmax_command_bytes = 65536\n'
                       f"snapshot_max_bytes = 1073741824\nheartbeat_us = 1000\ndetect_us = 500000\n"
                       f"replicas = [\n{replicas}]\n")
        self.nodes, self.attached = [None] * 3, None
        self.lines = [[] for _ in range(3)]
        for n in range(3):
            self.start(n, form=True)
        try:
            self.primary()
            self.settled()
        except BaseException:
            self.words()
            raise

    def start(self, n, form=False):
        log = open(os.path.join(self.dir.name, f"{n}.log"), "ab")
        command = [self.mu, "redis", "--config", self.config, "--id", str(n), "--json", "--parent", str(os.getpid())]
        command += ["--form"] if form else []
        command += ["--fault", self.bug] if self.bug else []
        command += ["--", "redis-server", "--enable-debug-command", "yes"]
        node = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.nodes[n] = node
        threading.Thread(target=lambda: self.lines[n].extend(map(json.loads, node.stdout)), daemon=True).start()

    def client(self, n, **options):
        options = {"socket_timeout": 5, "decode_responses": True, "retry": None, **options}
        return redis.Redis(self.host, self.ports[n], **options)

    def attach(self, n):
        """A plain server that replicates node n as Redis does; its client, once it has the dataset."""
        port = self.ports[0] + 9
        command = ["redis-server", "--bind", self.host, "--port", str(port), "--save", "", "--dir", self.dir.name,
                   "--replicaof", self.host, str(self.ports[n])]
        self.attached = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        client = redis.Redis(self.host, port, decode_responses=True, retry=None)
        until("the attached replica's link is up", lambda: client.info("replication")["master_link_status"] == "up")
        return client

    def sentinel(self):
        return Sentinel([(self.host, port + 20000) for port in self.ports], socket_timeout=1)

    def pid(self, n):
        return int(self.client(n).info("server")["process_id"])

    def find(self, besides=()):
        for n in range(3):
            if n not in besides:
                try:
                    if self.client(n, socket_timeout=0.5).role()[0] == "master":
                        return n + 1
                except (redis.RedisError, OSError):
                    pass

    def primary(self, besides=()):
        return until("a node is a primary", lambda: self.find(besides)) - 1

    def settled(self, patience_s=PATIENCE_S):
        """Waits until every node is up with a dataset, and has what the primary has; the digests must agree then."""
        states = []

        def agree():
            states.clear()
            for n in range(3):
                client = self.client(n)
                info = client.info("replication")
                mu = client.info("mu")
                check(info["role"] == "master" or info["master_link_status"] == "up", "a follower's link is down")
                place = mu["mu_stream_position"] if info["role"] == "master" else info["slave_repl_offset"]
                states.append((place, client.execute_command("DEBUG", "DIGEST"), mu["mu_voter"], info["role"]))
            same = len({state[:2] for state in states}) == 1
            voters = all(state[2] == 1 for state in states)
            roles = sorted(state[3] for state in states)
            return states if same and voters and roles == ["master", "slave", "slave"] else None
        def tried():
            try:
                return agree()
            except AssertionError:
                return None
        try:
            return until("all nodes have the same dataset", tried, patience_s)
        except AssertionError as error:
            raise AssertionError(f"{error}; {states}") from None

    def kill(self, n):
        os.kill(self.pid(n), signal.SIGKILL)

    def back(self, n, old):
        """Waits until a node that was killed has its vote again."""
        until("the killed node is back", lambda: self.pid(n) != old and self.client(n).info("mu")["mu_voter"] == 1)

    def end(self):
        for node in self.nodes:
            node.send_signal(signal.SIGTERM)
        for n, node in enumerate(self.nodes):
            check(node.wait(20) == 0, f"node {n} ended with status {node.returncode} on SIGTERM")
        self.dir.cleanup()

    def words(self):
        if self.attached:
            self.attached.kill()
        for n in range(3):
            path = os.path.join(self.dir.name, f"{n}.log")
            if os.path.exists(path):
                with open(path, errors="replace") as file:
                    lines = file.read().replace("\0", "").split("\n")
                # Redis's own remarks are many.
                text = "\n".join(line for line in lines if " * " not in line)
                print(f"---- node {n} said last\n{text[-3000:]}", file=sys.stderr)


class Load:
    """Threads that write through redis-py's Sentinel client and remember what was acknowledged."""

    SCRIPT = """local t = redis.call('TIME'); redis.call('SET', KEYS[1], t[1] .. t[2] .. math.random(), 'EX', 100)
                return redis.call('RPUSH', KEYS[2], ARGV[1])"""

    def __init__(self, group, seed, threads=3):
        self.group, self.stop = group, threading.Event()
        self.acked = [set() for _ in range(threads)]
        self.sums = [[0, 0] for _ in range(threads)]
        self.errors = []
        self.threads = [threading.Thread(target=self.guarded, args=(n, seed), daemon=True) for n in range(threads)]
        for thread in self.threads:
            thread.start()

    def guarded(self, n, seed):
        try:
            self.run(n, random.Random(f"{seed}-{n}"))
        except Exception as error:
            self.errors.append(repr(error))

    def run(self, n, rng):
        # No retry by the library: what it would send twice could be carried out twice.
        options = {"socket_timeout": 3, "decode_responses": True, "retry": None}
        dbs = [self.group.sentinel().master_for(NAME, db=db, **options) for db in (0, 3)]
        count = 0
        while not self.stop.is_set():
            count += 1
            which = rng.randrange(len(dbs))
            client, mark = dbs[which], f"{n}:{count}"
            try:
                kind = rng.randrange(9)
                if kind == 0:
                    self.sums[n][1] += 1
                    client.incr(f"sum:{n}")
                    self.sums[n][0] += 1
                    continue
                if kind == 1:
                    client.set(f"ttl:{rng.randrange(50)}", mark, px=rng.randrange(1, 300))
                    continue
                if kind == 2:
                    client.spop(f"set:{rng.randrange(5)}")
                    continue
                if kind == 3:
                    client.sadd(f"set:{rng.randrange(5)}", *range(rng.randrange(1, 20)))
                    continue
                if kind == 4:
                    pipe = client.pipeline(transaction=True)
                    pipe.rpush(f"list:{n}", mark).set(f"last:{n}", mark).xadd(f"stream:{n}", {"m": mark}, maxlen=50)
                    pipe.execute()
                elif kind == 5:
                    client.eval(self.SCRIPT, 2, f"time:{n}", f"list:{n}", mark)
                elif kind == 6:
                    client.delete(f"gone:{rng.randrange(5)}", f"set:{rng.randrange(5)}")
                    continue
                elif kind == 7:
                    value = client.get(f"last:{n}")
                    check(value is None or value.startswith(f"{n}:"), f"a wrong value: {value}")
                    continue
                else:
                    client.rpush(f"list:{n}", mark)
                self.acked[n].add((3 if which else 0, mark))
            except LOST:
                time.sleep(0.001)
            except ResponseError as error:
                check("READONLY" in str(error) or "MISCONF" in str(error), f"an answer that should not be: {error}")

    def acknowledged(self):
        return sum(map(len, self.acked))

    def end(self):
        self.stop.set()
        for thread in self.threads:
            thread.join(30)
        check(not self.errors, f"a client failed: {self.errors}")

    def judge(self):
        """Everything acknowledged is there, once."""
        n = self.group.primary()
        for db in (0, 3):
            client = self.group.client(n, db=db)
            for thread, acked in enumerate(self.acked):
                there = client.lrange(f"list:{thread}", 0, -1)
                check(len(there) == len(set(there)), f"something was applied twice in list:{thread} of db {db}")
                lost = {mark for at, mark in acked if at == db} - set(there)
                check(not lost, f"{len(lost)} acknowledged writes are lost, such as {min(lost, default='')}")
        for thread, (least, most) in enumerate(self.sums):
            total = sum(int(self.group.client(n, db=db).get(f"sum:{thread}") or 0) for db in (0, 3))
            check(least <= total <= most, f"sum:{thread} is {total}, not between {least} and {most}")


def test_kills(mu, seed, rounds):
    """Leaders killed under load: nothing acknowledged is lost or doubled, datasets agree, the node comes back."""
    group = Group(mu)
    try:
        rng = random.Random(seed)
        load = Load(group, seed)
        for _ in range(rounds):
            before = load.acknowledged()
            until("commands are acknowledged", lambda: load.acknowledged() > before + 50)
            time.sleep(rng.random() / 5)
            n = group.primary()
            old = group.pid(n)
            group.kill(n)
            group.primary(besides=[n])
            # Another death before that would take the majority's memory.
            group.back(n, old)
        load.end()
        group.settled()
        load.judge()
        group.end()
        return f"{rounds} leaders killed, {load.acknowledged()} acknowledged writes there once, digests equal"
    except BaseException:
        group.words()
        raise


def test_lost(mu, seed, rounds):
    """The negative control: replies that leave before they are decided must be found."""
    group = Group(mu, bug="early-answer")
    load = Load(group, seed)
    try:
        for _ in range(rounds * 3):
            before = load.acknowledged()
            until("commands are acknowledged", lambda: load.acknowledged() > before + 50)
            n = group.primary()
            old = group.pid(n)
            group.kill(n)
            group.primary(besides=[n])
            group.back(n, old)
        load.end()
        group.settled(5)
        load.judge()
    except AssertionError as error:
        words = ("lost", "not between", "same dataset")
        check(any(word in str(error) for word in words), f"it failed for another reason: {error}")
        return f"early answers found: {error}"
    finally:
        for node in group.nodes:
            node.kill()
    raise AssertionError("replies that leave before they are decided were not found")


def stale(mu, bug):
    """What a leader says that was stopped, lost its office meanwhile, and goes on with a read waiting for it."""
    group = Group(mu, bug)
    try:
        n = group.primary()
        client = group.client(n)
        client.set("x", "old")
        pid = group.pid(n)
        raw = socket.create_connection((group.host, group.ports[n]))
        raw.settimeout(10)
        raw.sendall(b"*1\r\n$4\r\nPING\r\n")
        check(raw.recv(100) == b"+PONG\r\n", "no PONG")
        os.kill(pid, signal.SIGSTOP)
        other = group.primary(besides=[n])
        until("the new leader takes a write", lambda: group.client(other).set("x", "new"))
        raw.sendall(b"*2\r\n$3\r\nGET\r\n$1\r\nx\r\n")
        os.kill(pid, signal.SIGCONT)
        try:
            answer = raw.recv(100)
        except OSError:
            answer = b""
        return answer
    except BaseException:
        group.words()
        raise
    finally:
        for node in group.nodes:
            node.kill()


def test_stale(mu, *_):
    """A leader that lost its office while it was stopped answers no read; without its proof it would."""
    answer = stale(mu, None)
    check(answer == b"", f"a leader without its office answered {answer!r}")
    answer = stale(mu, "unproved-read")
    check(answer == b"$3\r\nold\r\n", f"the seeded bug answered {answer!r}, so the check finds nothing")
    return "a stopped leader answered nothing when it went on; without the proof it answered the old value"


def test_role(mu, *_):
    """A follower whose server becomes a primary by any other way than the node's ends before it answers as one."""
    group, stop = Group(mu), threading.Event()
    try:
        n = (group.primary() + 1) % 3
        group.nodes[n].send_signal(signal.SIGTERM)
        check(group.nodes[n].wait(20) == 0, "a follower did not end on SIGTERM")
        group.bug = "primary-unasked"
        group.start(n)
        path = os.path.join(group.dir.name, f"{n}.log")
        words = "this node has not made it one"
        roles, client = [], group.client(n, socket_timeout=1)
        written = []

        def write():
            other = group.client(n, socket_timeout=1)
            while not stop.is_set():
                try:
                    written.append(other.set("role", "primary"))
                except (redis.RedisError, OSError):
                    pass

        writer = threading.Thread(target=write)
        writer.start()

        def ended():
            try:
                roles.append(client.role()[0])
            except (redis.RedisError, OSError):
                pass
            with open(path, errors="replace") as file:
                return words in file.read()

        until("a follower that is a primary ends", ended)
        stop.set()
        writer.join()
        check(roles and "master" not in roles, f"it answered as {set(roles)}")
        check(not written, "it took a write")
    except BaseException:
        group.words()
        raise
    finally:
        stop.set()
        for node in group.nodes:
            node.kill()
    return f"a follower's server that became a primary unasked ended at once, after {len(roles)} answers as a follower"


def test_features(mu, seed, _):
    """Users, large values, refusals, Sentinel, INFO, and a node that comes back with a snapshot."""
    group = Group(mu)
    try:
        n = group.primary()
        follower = (n + 1) % 3
        client = group.client(n)

        client.execute_command("ACL", "SETUSER", "alice", "on", ">secret", "~a*", "+get", "+set", "+mu.refuse")
        group.settled()
        for at in range(3):
            alice = group.client(at, username="alice", password="secret")
            check(alice.get("a") is None, "a new user cannot read")
        try:
            group.client(follower).execute_command("ACL", "SETUSER", "bob")
            raise AssertionError("a follower changed a user")
        except ReadOnlyError:
            pass
        alice = group.client(n, username="alice", password="secret")
        try:
            alice.execute_command("ACL", "SETUSER", "alice", "+@all")
            raise AssertionError("a user gave itself rights")
        except redis.RedisError as error:
            check("permission" in str(error).lower(), f"another refusal: {error}")
        client.execute_command("ACL", "SETUSER", "gone", "on")
        client.execute_command("ACL", "DELUSER", "gone")
        group.settled()
        check(all("gone" not in group.client(at).acl_users() for at in range(3)), "a user that was deleted is there")

        client.config_set("requirepass", "pw")
        for at in range(3):
            until("the password is asked for everywhere", lambda: group.client(at, password="pw").ping())
            try:
                group.client(at).ping()
                raise AssertionError("a node asks for no password")
            except redis.AuthenticationError:
                pass
        group.client(n, password="pw").config_set("requirepass", "")
        group.settled()

        big = os.urandom(3 << 20)
        bytes_client = group.client(n, decode_responses=False)
        pipe = bytes_client.pipeline(transaction=True)
        pipe.set("big", big).set("beside", b"1").execute()
        group.settled()
        check(group.client(follower, decode_responses=False).get("big") == big, "a large value differs")

        for words in (["CONFIG", "SET", "appendonly", "no"], ["REPLICAOF", "NO", "ONE"], ["DEBUG", "LOADAOF"],
                      ["CONFIG", "SET", "maxmemory", "100mb", "appendfsync", "no"], ["ACL", "LOAD"]):
            try:
                client.execute_command(*words)
                raise AssertionError(f"{words} was taken")
            except ResponseError as error:
                check("mu" in str(error) or "replicated" in str(error) or "log" in str(error), f"{words}: {error}")
        client.execute_command("CONFIG", "SET", "maxmemory", "100mb")
        try:
            group.client(follower).set("x", "y")
            raise AssertionError("a follower was written to")
        except ReadOnlyError:
            pass
        info = client.info("mu")
        check(info["mu_server_is"] == "primary" and info["mu_role"] == "leader" and info["mu_turns_decided"] > 0,
              f"INFO mu: {info}")
        # A turn that wrote nothing proves the leadership; one that wrote has done so by that.
        before = client.info("mu")["mu_reads_proved"]
        client.get("a")
        check(client.info("mu")["mu_reads_proved"] > before, "a read was answered without a proof")

        # Nobody's backlog costs nothing; a plain replica can be attached all the same, and makes it anew.
        backlog = lambda: client.info("replication")["repl_backlog_active"]
        until("a primary without replicas has no backlog", lambda: backlog() == 0)
        attached = group.attach(n)
        client.set("to", "attached")
        until("an attached replica follows", lambda: attached.get("to") == "attached")
        check(backlog() == 1, "an attached replica has no backlog")
        group.attached.kill()
        group.attached.wait()

        sentinel = group.sentinel()
        check(sentinel.discover_master(NAME) == (group.host, group.ports[n]), "Sentinel names another primary")
        until("Sentinel names the followers", lambda: len(sentinel.discover_slaves(NAME)) == 2)
        newer = redis.Redis(group.host, group.ports[follower] + 20000, protocol=3, decode_responses=True)
        check(newer.execute_command("SENTINEL", "get-master-addr-by-name", NAME) == [group.host, str(group.ports[n])],
              "RESP3 is answered otherwise")
        listener = redis.Redis(group.host, group.ports[follower] + 20000, decode_responses=True).pubsub()
        listener.subscribe("+switch-master")
        until("the subscription stands", lambda: listener.get_message(timeout=1))
        old = group.pid(n)
        group.kill(n)
        other = group.primary(besides=[n])
        event = until("the switch is told", lambda: listener.get_message(timeout=1))
        check(event["data"].split()[0] == NAME and int(event["data"].split()[4]) == group.ports[other],
              f"the event says {event}")
        until("the killed node is back", lambda: group.pid(n) != old)
        group.settled()
        alice = group.client(n, username="alice", password="secret")
        check(alice.get("a") is None, "the user is not in the snapshot")
        check(group.client(n, decode_responses=False).get("big") == big, "the large value is not in the snapshot")
        # The order of rules that commute differs.
        users = [[sorted(line.split()) for line in group.client(at).acl_list()] for at in (n, other)]
        check(users[0] == users[1], f"the users differ: {users}")
        # A follower that is killed costs nothing.
        victim = 3 - n - other
        group.kill(victim)
        check(group.client(other).set("while", "away"), "no write while a follower is away")
        group.settled()
        until("the role of the node that was killed is told",
              lambda: any(line.get("role") == "follower" and "ready" not in line for line in group.lines[n]))
        check(group.lines[n][0].get("ready") is True, f"the first line is {group.lines[n][0]}")
        group.end()
        return "users, large values, refusals, Sentinel, INFO, and a node that came back with all of it"
    except BaseException:
        group.words()
        raise


def test_halves(mu, seed, rounds):
    """Turns of many parts, whose leader is killed in the middle: all of a transaction is there or nothing."""
    group = Group(mu)
    try:
        for count in range(rounds):
            n = group.primary()
            client = group.client(n, decode_responses=False)
            pid = group.pid(n)
            value = bytes([65 + count % 26]) * (6 << 20)
            timer = threading.Timer(random.Random(f"{seed}-{count}").random() / 20, os.kill, (pid, signal.SIGKILL))
            acked = False
            pipe = client.pipeline(transaction=True)
            pipe.set("one", value).set("two", value)
            timer.start()
            try:
                pipe.execute()
                acked = True
            except LOST:
                pass
            timer.join()
            other = group.primary(besides=[n])
            group.settled()
            client = group.client(other, decode_responses=False)
            one, two = client.get("one"), client.get("two")
            check(one == two, "half of a transaction is there")
            check(not acked or one == value, "an acknowledged transaction is gone")
        group.end()
        return f"{rounds} transactions of 12 MiB whole or not at all"
    except BaseException:
        group.words()
        raise


def test_behind(mu, *_):
    """A follower that is stopped while the log goes round comes back with a dataset; a short stop costs nothing."""
    group = Group(mu)
    try:
        n = group.primary()
        victim = (n + 1) % 3
        pid = group.pid(victim)
        client = group.client(n, decode_responses=False)
        os.kill(pid, signal.SIGSTOP)
        value = os.urandom(1 << 20)
        for count in range(150):
            client.set(f"k{count % 8}", value + b"%d" % count)
        os.kill(pid, signal.SIGCONT)
        group.settled()
        check(group.pid(victim) == pid, "the follower was started again")
        snapshots = group.client(victim).info("replication")["master_replid"]
        check(int(snapshots[:24], 16) >= 2, "the log did not go round, so nothing was tested")
        group.kill(n)
        group.primary(besides=[n])
        group.settled()
        group.end()
        return "a follower that was left behind by 150 MiB has the same dataset"
    except BaseException:
        group.words()
        raise


def test_refusals(mu, *_):
    """What would break the promise is refused at start: status 2, with the reason and the remedy."""
    with tempfile.TemporaryDirectory() as folder:
        with open(os.open(os.path.join(folder, "k"), os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            file.write("hex:" + "ab" * 32)
        config = os.path.join(folder, "cluster.toml")
        with open(config, "w") as file:
            file.write('cluster = "c"\npsk_file = "k"\nreplicas = [{ id = 0, control = "127.0.0.1:23001", '
                       'client = "127.0.0.1:23002" }, { id = 1, control = "127.0.0.1:23003" }]\n')
        lonely = os.path.join(folder, "mu")
        with open(mu, "rb") as source, open(os.open(lonely, os.O_WRONLY | os.O_CREAT, 0o700), "wb") as copy:
            copy.write(source.read())
        old = os.path.join(folder, "old-server")
        with open(os.open(old, os.O_WRONLY | os.O_CREAT, 0o700), "w") as file:
            file.write("#!/bin/sh\necho 'Redis server v=6.2.14 sha=0'\n")
        cases = [
            (mu, "0", ["redis-server", "--appendonly", "no"], "appendonly"),
            (mu, "0", ["redis-server", "--appendfsync", "everysec"], "appendfsync"),
            (mu, "0", ["no-such-server"], "apt-get install redis-server"),
            (mu, "0", [old], "6.2.14"),
            (mu, "1", [], "client ="),
            (mu, "7", [], "--id"),
            (mu, "0", ["--dir", os.path.join(folder, "r[1]"), "redis-server"], "pattern"),
            (lonely, "0", [], "libmu_redis.so is missing"),
        ]
        for program, which, server, words in cases:
            mine, server = (server[:2], server[2:]) if server[:1] == ["--dir"] else ([], server)
            command = [program, "redis", "--config", config, "--id", which, "--form", *mine, "--", *server]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            check(done.returncode == 2, f"{command} ended with status {done.returncode}: {done.stderr}")
            check(words in done.stderr and not done.stdout, f"{command} said {done.stderr!r}")
    return f"{len(cases)} wrong starts refused"


TESTS = {"refusals": test_refusals, "features": test_features, "kills": test_kills, "halves": test_halves,
         "behind": test_behind, "stale": test_stale, "role": test_role, "lost": test_lost}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("mu")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=TESTS, action="append")
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    for name in args.only or TESTS:
        begin = time.monotonic()
        try:
            said = TESTS[name](os.path.abspath(args.mu), args.seed, args.rounds)
        except AssertionError as error:
            print(f"{name} does not hold: {error}\nreplay: --seed {args.seed} --only {name}", flush=True)
            sys.exit(1)
        print(f"{name}: {said} ({time.monotonic() - begin:.1f} s)", flush=True)


if __name__ == "__main__":
    main()
