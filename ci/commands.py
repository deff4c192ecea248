"""Standard input must be exactly one JSON object that satisfies the condition given as the argument."""

import json
import sys


def percentiles(p):
    """Latencies in nanoseconds, as every command reports them."""
    in_order = [p[key] for key in ("p50", "p90", "p99", "p999", "max")]
    return p["count"] > 0 and in_order[0] > 0 and in_order == sorted(in_order)


o = json.loads(sys.stdin.read())
condition = sys.argv[1]
if not isinstance(o, dict):
    sys.exit("not a JSON object")
try:
    holds = eval(" ".join(condition.split()))
except KeyError as key:
    sys.exit(f"the object has no key {key}")
if not holds:
    sys.exit(f"does not hold: {condition}")
