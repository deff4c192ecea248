"""Three processes of the exchange on Liquibook take the orders of a file while their leader is killed, and must come to
the trades and books that orderbook-rs made of them.

    liquibook.py NODE ORDERS EXPECTED [--kills N] [--skip N]

EXPECTED is what apps/exchange/examples/common.rs printed. --skip is the control: the first orders are left out.
"""

import argparse
import json
import sys
import tempfile
import time

from capi import Died, Group, write_config


def run(group, leader, first, last, kill_at):
    """Has a leader take orders; kills it at one of them. Gives what is acknowledged."""
    leader.send(f"run {first} {last}")
    killed = False
    while True:
        try:
            word, acked, *code = leader.line().split()
        except Died:
            if not killed:
                raise
            return first
        first = int(acked)
        if word == "done":
            return first
        if word == "ended":
            if code[0] not in ("1", "2", "4"):
                sys.exit(f"replica {leader.ident} ended with code {code}")
            return first
        if kill_at is not None and first >= kill_at and not killed:
            killed = True
            leader.kill()
            del group.nodes[leader.ident]


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--kills", type=int, default=2)
    options.add_argument("--skip", type=int, default=0)
    for name in ("node", "orders", "expected"):
        options.add_argument(name)
    options = options.parse_args()
    with open(options.expected) as file:
        expected = json.load(file)
    orders = expected["orders"]
    kills = [orders * (n + 1) // (options.kills + 1) for n in range(options.kills)]
    with tempfile.TemporaryDirectory() as folder:
        config = write_config(folder, 3, log_bytes=16 << 20)
        group = Group([options.node, options.orders], config)
        group.agree()
        acked, begin, done = options.skip, time.monotonic(), 0
        while acked < orders:
            kill_at = kills[0] if kills else None
            leader = group.leader()
            acked = max(acked, run(group, leader, acked, orders, kill_at))
            if leader.ident not in group.nodes:
                kills.pop(0)
                done += 1
                group.leader()
                group.restart(leader.ident)
                group.agree()
        seconds = time.monotonic() - begin
        _, _, applied, trades, trade_hash, book_hash = group.agree().split()
    found = {"trades": int(trades), "trade_hash": trade_hash, "book_hash": book_hash}
    wrong = [f"{key}: {value}, but orderbook-rs has {expected[key]}" for key, value in found.items()
             if value != expected[key]]
    if wrong or done != options.kills or int(applied) != orders - options.skip:
        sys.exit(f"{applied} orders, {done} kills; " + "; ".join(wrong))
    print(f"{applied} orders, {trades} trades, {expected['resting']} resting, alike in both engines; {done} kills; "
          f"{int(applied) / seconds:.0f} orders/s")


main()
