//! Which commands a node does not take as Redis would: those that break its promise, and those about users.

/// What becomes of a command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Redis's business.
    Pass,
    /// It changes users: [`change_users`](crate::module::change_users) carries it out, for they are replicated.
    Users,
    /// `CONFIG SET requirepass`: the same, of the user `default`, as Redis itself understands it.
    Password,
    /// Refused, and why.
    Refuse(&'static str),
    /// The same at a follower's server only.
    RefuseAtFollower(&'static str),
}

/// Settings on which the promise rests; they are made by `mu redis`.
const FIXED: [&str; 19] = [
    "appendonly",
    "appendfsync",
    "no-appendfsync-on-rewrite",
    "appendfilename",
    "appenddirname",
    "aof-timestamp-enabled",
    "auto-aof-rewrite-percentage",
    "dir",
    "dbfilename",
    "replica-read-only",
    "slave-read-only",
    "masterauth",
    "masteruser",
    "repl-timeout",
    "replica-ignore-maxmemory",
    "slave-ignore-maxmemory",
    "tls-replication",
    "crash-log-enabled",
    "crash-memcheck-enabled",
];

/// Parts of DEBUG that change nothing behind the log's back.
const DEBUG: [&str; 12] = [
    "digest",
    "digest-value",
    "object",
    "sdslen",
    "ziplist",
    "listpack",
    "sleep",
    "htstats",
    "help",
    "error",
    "protocol",
    "log",
];

/// PSYNC, the stream and the offset: what a replica says.
const PSYNC_COUNT: usize = 3;

const FIXED_WHY: &str = "mu sets this for every node, and a change would break its promise";
const PASSWORD_WHY: &str =
    "requirepass stands for a replicated change of the user default: set it alone";
const ROLE_WHY: &str = "mu decides who is the primary; to hand over, stop the primary's process";
const DEBUG_WHY: &str = "this part of DEBUG changes data behind the log's back";
const SCRIPT_DEBUG_WHY: &str =
    "a script that is debugged answers in the middle of a turn, before what it did is decided";
const PAUSE_WHY: &str =
    "a follower that is paused cannot become the primary in time: pause at the primary";
const REWRITE_WHY: &str =
    "mu makes this server's settings anew at every start; keep your own in a file behind --";
const ACL_LOAD_WHY: &str = "ACL LOAD changes this node only: use ACL SETUSER, which is replicated";
const UNLOAD_WHY: &str = "without the module mu this server would not be replicated";

fn is(argument: &[u8], word: &str) -> bool {
    argument.eq_ignore_ascii_case(word.as_bytes())
}

/// Judges a command of `count` arguments. Most are told by their first letters at once.
#[inline]
pub(crate) fn judge<'a>(count: usize, argument: impl Fn(usize) -> &'a [u8]) -> Verdict {
    let name = argument(0);
    match name.first().map(u8::to_ascii_lowercase) {
        Some(b'a' | b'c' | b'd' | b'f' | b'm' | b'p' | b'r' | b's') => among(name, count, argument),
        _ => Verdict::Pass,
    }
}

fn among<'a>(name: &[u8], count: usize, argument: impl Fn(usize) -> &'a [u8]) -> Verdict {
    let what = || argument(1);
    match name.len() {
        3 if is(name, "acl") && (is(what(), "setuser") || is(what(), "deluser")) => Verdict::Users,
        3 if is(name, "acl") && is(what(), "load") => Verdict::Refuse(ACL_LOAD_WHY),
        // Behind the offset stands FAILOVER, which makes a follower's server a primary.
        5 if is(name, "psync") && count > PSYNC_COUNT => Verdict::Refuse(ROLE_WHY),
        5 if is(name, "debug") && !DEBUG.iter().any(|word| is(what(), word)) => {
            Verdict::Refuse(DEBUG_WHY)
        }
        6 if is(name, "client") && is(what(), "pause") => Verdict::RefuseAtFollower(PAUSE_WHY),
        6 if is(name, "script") && is(what(), "debug") && !is(argument(2), "no") => {
            Verdict::Refuse(SCRIPT_DEBUG_WHY)
        }
        6 if is(name, "config") && is(what(), "rewrite") => Verdict::Refuse(REWRITE_WHY),
        6 if is(name, "config") && is(what(), "set") => {
            let sets = |word: &str| (2..count).step_by(2).any(|n| is(argument(n), word));
            if FIXED.iter().any(|word| sets(word)) {
                Verdict::Refuse(FIXED_WHY)
            } else if sets("requirepass") && count == 4 {
                Verdict::Password
            } else if sets("requirepass") {
                Verdict::Refuse(PASSWORD_WHY)
            } else {
                Verdict::Pass
            }
        }
        6 if is(name, "module") && is(what(), "unload") && is(argument(2), "mu") => {
            Verdict::Refuse(UNLOAD_WHY)
        }
        7 if is(name, "slaveof") => Verdict::Refuse(ROLE_WHY),
        8 if is(name, "failover") => Verdict::Refuse(ROLE_WHY),
        9 if is(name, "replicaof") => Verdict::Refuse(ROLE_WHY),
        _ => Verdict::Pass,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(line: &str) -> Verdict {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        judge(words.len(), |n| words.get(n).copied().unwrap_or(&[]))
    }

    #[test]
    fn what_breaks_the_promise_is_refused_and_the_rest_is_not() {
        for line in [
            "CONFIG SET appendonly no",
            "config set maxmemory 1gb AppendFsync everysec",
            "CONFIG SET requirepass x maxmemory 1",
            "REPLICAOF NO ONE",
            "slaveof 127.0.0.1 1",
            "FAILOVER",
            "PSYNC 0123 7 FAILOVER",
            "psync ? -1 failover",
            "DEBUG LOADAOF",
            "DEBUG RELOAD NOSAVE",
            "DEBUG",
            "MODULE UNLOAD mu",
            "SCRIPT DEBUG YES",
            "script debug sync",
            "CONFIG REWRITE",
            "CONFIG SET slave-ignore-maxmemory no",
            "CONFIG SET maxmemory 1 crash-memcheck-enabled yes",
            "ACL LOAD",
        ] {
            assert!(matches!(judged(line), Verdict::Refuse(_)), "{line}");
        }
        for line in [
            "SET acl setuser",
            "CONFIG GET appendonly",
            "CONFIG SET maxmemory appendonly",
            "DEBUG DIGEST",
            "ACL WHOAMI",
            "MODULE UNLOAD other",
            "",
            "SADD config set",
            "PSYNC ? -1",
            "PING a b c",
            "SCRIPT DEBUG NO",
            "SCRIPT LOAD debug",
            "CONFIG RESETSTAT",
        ] {
            assert_eq!(judged(line), Verdict::Pass, "{line}");
        }
        assert!(matches!(
            judged("Client Pause 1000"),
            Verdict::RefuseAtFollower(_)
        ));
        assert_eq!(judged("CLIENT UNPAUSE"), Verdict::Pass);
        assert_eq!(judged("config set RequirePass x"), Verdict::Password);
        for line in ["ACL SETUSER a on", "acl DelUser a"] {
            assert_eq!(judged(line), Verdict::Users, "{line}");
        }
    }
}
