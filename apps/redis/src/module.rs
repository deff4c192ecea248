//! The module's side of a node: what it starts, what it asks of its server, users, and the section of INFO.

use std::ffi::CStr;
use std::fs::{self, File};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use mu::host::sleep_precisely;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use tracing_subscriber::EnvFilter;

use crate::effects::Local;
use crate::feed::Base;
use crate::module_raw::{Reply, Server, try_with_server, with_server};
use crate::node::{self, Mode};
use crate::setup::{Setup, VARIABLE};
use crate::{feeder, hooks_raw, keeper, report, sentinel, turn};

/// Starts the node, as the environment says.
pub(crate) fn start() -> Result<()> {
    // The launcher's death is this server's, however it comes about.
    set_pdeathsig(Signal::SIGKILL)?;
    let filter = EnvFilter::try_from_env("MU_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    log.with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(false)
        .init();
    let text = std::env::var(VARIABLE)
        .with_context(|| format!("no {VARIABLE}: start the server with mu redis"))?;
    let setup: Setup =
        serde_json::from_str(&text).with_context(|| format!("reading {VARIABLE}"))?;
    let feeder = TcpListener::from(hooks_raw::inherited(setup.feeder_fd)?);
    report::open(File::from(hooks_raw::inherited(setup.report_fd)?));
    // This thread decides, and waits for a few microseconds now and then.
    sleep_precisely();
    // The server's own thread takes the signals; those of the node begin here and inherit this.
    SigSet::all().thread_set_mask()?;
    let started = node::start(setup, Box::new(Own)).and_then(|node| {
        node::spawn("mu-feeder", move || feeder::run(node, &feeder))?;
        node::spawn("mu-sentinel", move || sentinel::run(node))?;
        node::spawn("mu-keeper", move || keeper::run(node))
    });
    // The launcher reads its signals from a descriptor, so this process began with some of them blocked.
    SigSet::empty().thread_set_mask()?;
    started
}

/// What a server says of its replication.
#[derive(Debug)]
pub(crate) struct Replication {
    /// Bytes of the stream that it has applied; `None` while it gets a dataset.
    pub(crate) position: Option<u64>,
    /// Its append-only file is being made.
    pub(crate) file_in_the_making: bool,
}

impl Server {
    fn info(&self, section: &str) -> String {
        match self.call(&[b"INFO", section.as_bytes()], false) {
            Reply::Text(text) => String::from_utf8_lossy(&text).into_owned(),
            _ => String::new(),
        }
    }

    pub(crate) fn replication(&self) -> Replication {
        let (replication, persistence) = (self.info("replication"), self.info("persistence"));
        let value = |text: &str, name: &str| -> Option<String> {
            let found = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            found.map(str::to_owned)
        };
        let up = value(&replication, "master_link_status").is_some_and(|status| status == "up");
        let position =
            value(&replication, "slave_repl_offset").and_then(|place| place.parse().ok());
        // A file that could not be made is scheduled again.
        let quiet = |name| value(&persistence, name).is_some_and(|value| value == "0");
        Replication {
            position: position.filter(|_| up),
            file_in_the_making: !(quiet("aof_rewrite_in_progress")
                && quiet("aof_rewrite_scheduled")),
        }
    }

    pub(crate) fn become_primary(&self) -> Result<(), String> {
        match self.call(&[b"REPLICAOF", b"NO", b"ONE"], false) {
            Reply::Error(why) => Err(why),
            _ => Ok(()),
        }
    }

    /// The lines of `ACL LIST`.
    fn users(&self) -> Vec<Vec<u8>> {
        let lines = match self.call(&[b"ACL", b"LIST"], false) {
            Reply::Array(lines) => lines,
            _ => Vec::new(),
        };
        let text = |line| match line {
            Reply::Text(text) => Some(text),
            _ => None,
        };
        lines.into_iter().filter_map(text).collect()
    }

    fn setting(&self, name: &str) -> Option<String> {
        match self.call(&[b"CONFIG", b"GET", name.as_bytes()], false) {
            Reply::Array(pair) => match pair.into_iter().nth(1)? {
                Reply::Text(value) => String::from_utf8(value).ok(),
                _ => None,
            },
            _ => None,
        }
    }
}

/// Settings without which nothing is promised, whoever made them.
const PROMISED: [(&str, &str); 5] = [
    ("appendonly", "yes"),
    ("appendfsync", "always"),
    ("no-appendfsync-on-rewrite", "no"),
    ("replica-read-only", "yes"),
    ("io-threads", "1"),
];

/// What of the server's settings is wrong, if anything is.
pub(crate) fn misconfigured() -> Option<String> {
    with_server(|server| {
        // A change of this is told (`keeper::became_primary`); what the server starts with is not.
        if server.setting("replicaof").is_none_or(|of| of.is_empty()) {
            return Some("replicaof is empty and has to name its node".into());
        }
        PROMISED.iter().find_map(|(name, right)| {
            let value = server.setting(name);
            let wrong = value.as_deref() != Some(right);
            wrong.then(|| format!("{name} is {value:?} and has to be {right}"))
        })
    })
}

/// A turn is waited for so long, for which the replica stands still: at the leader, and at a follower.
const LEADERS: Duration = Duration::from_millis(20);
const FOLLOWERS: Duration = Duration::from_millis(500);
/// Between two tries to find the server at rest.
const SAVE_PAUSE: Duration = Duration::from_micros(100);

/// This process's server.
struct Own;

impl Local for Own {
    fn save(&self) -> Option<Base> {
        let node = node::get()?;
        if turn::is_main() {
            // In the middle of a turn: what the server has executed is not all decided.
            return None;
        }
        // A primary may be waiting for the thread that this is called on. Otherwise it rests between two turns, all of
        // which are decided, so it can give its dataset too; whoever asks prefers a follower.
        let begin = Instant::now();
        let no_use = || {
            let most = match node.leads() {
                true => LEADERS,
                false => FOLLOWERS,
            };
            begin.elapsed() > most
        };
        let pause = || std::thread::sleep(SAVE_PAUSE);
        try_with_server(no_use, pause, |server| {
            let position = match node.mode() {
                Mode::Leader => node.position(),
                Mode::Follower => server.replication().position?,
            };
            if let Reply::Error(why) = server.call(&[b"SAVE"], false) {
                tracing::warn!(why, "no dataset can be saved for another replica");
                return None;
            }
            let file = PathBuf::from(server.setting("dir")?).join(server.setting("dbfilename")?);
            if node.mode() == Mode::Leader {
                turn::say_database_again();
            }
            let rdb = fs::read(&file).ok()?;
            // Nothing of a node lasts: its file is for the other one only.
            let _ = fs::remove_file(&file);
            tracing::info!(position, bytes = rdb.len(), "a dataset for another replica");
            Some(Base {
                position,
                rdb,
                users: server.users(),
            })
        })?
    }
}

fn words(line: &[u8]) -> Vec<&[u8]> {
    line.split(|byte| *byte == b' ')
        .filter(|word| !word.is_empty())
        .collect()
}

/// A line of `ACL LIST` as the command that makes the user so, whatever it was before.
fn set_user<'a>(line: &[&'a [u8]]) -> Vec<&'a [u8]> {
    let [_, name, rules @ ..] = line else {
        return Vec::new();
    };
    [&[b"setuser", *name, b"reset"][..], rules].concat()
}

/// Makes the server's users those of another server's `ACL LIST`.
///
/// # Errors
/// The server's word.
pub(crate) fn set_users(lines: &[Vec<u8>]) -> Result<(), String> {
    let failed = |reply| match reply {
        Reply::Error(why) => Err(why),
        _ => Ok(()),
    };
    with_server(|server| {
        let before = server.users();
        for line in lines.iter().filter(|line| !before.contains(line)) {
            let call = [&[b"ACL".as_slice()], set_user(&words(line)).as_slice()].concat();
            failed(server.call(&call, false))?;
        }
        let named = |line: &[u8]| words(line).get(1).map(|name| name.to_vec());
        let wanted: Vec<_> = lines.iter().filter_map(|line| named(line)).collect();
        for name in server.users().iter().filter_map(|line| named(line)) {
            if !wanted.contains(&name) {
                failed(server.call(&[b"ACL", b"DELUSER", &name], false))?;
            }
        }
        Ok(())
    })
}

/// Whether this node has made its server a primary.
pub(crate) fn is_primary() -> bool {
    node::get().is_some_and(|node| node.mode() == Mode::Leader)
}

fn changes_users(what: &[u8]) -> bool {
    what.eq_ignore_ascii_case(b"setuser") || what.eq_ignore_ascii_case(b"deluser")
}

/// `ACL SETUSER` and `ACL DELUSER`: carried out, and put into the stream. Of a user the stream gets the result and not
/// the rules that led there, so no password stands in it, and it is the same everywhere.
pub(crate) fn change_users(server: &Server, arguments: &[&[u8]]) -> Reply {
    // `mu.acl` is a command that clients can say themselves.
    if !arguments.first().is_some_and(|what| changes_users(what)) {
        return Reply::Error("ERR expected setuser or deluser: use ACL".into());
    }
    let leads = is_primary();
    let call = [&[b"ACL".as_slice()], arguments].concat();
    let reply = server.call(&call, leads);
    if !leads || matches!(reply, Reply::Error(_)) {
        return reply;
    }
    let [what, names @ ..] = arguments else {
        return reply;
    };
    if what.eq_ignore_ascii_case(b"deluser") {
        server.replicate(&[&[b"mu.acl".as_slice(), b"deluser"][..], names].concat());
    } else if let Some(name) = names.first() {
        let users = server.users();
        let line = users
            .iter()
            .map(|line| words(line))
            .find(|words| words.get(1) == Some(name));
        if let Some(line) = line {
            server.replicate(&[&[b"mu.acl".as_slice()], set_user(&line).as_slice()].concat());
        }
    }
    reply
}

/// A value of INFO.
pub(crate) enum Figure<'a> {
    Number(u64),
    Text(&'a str),
}

/// The section `mu`.
pub(crate) fn info(each: &mut dyn FnMut(&CStr, Figure<'_>)) {
    let Some(node) = node::get() else { return };
    let status = node.handle.status();
    let count =
        |counter: &std::sync::atomic::AtomicU64| Figure::Number(counter.load(Ordering::Relaxed));
    let number = |value: Option<u8>| value.map_or_else(|| "none".into(), |id| id.to_string());
    each(c"cluster", Figure::Text(&status.cluster));
    each(c"id", Figure::Number(status.id.into()));
    each(c"role", Figure::Text(&status.role));
    each(
        c"server_is",
        Figure::Text(match node.mode() {
            Mode::Leader => "primary",
            Mode::Follower => "replica",
        }),
    );
    each(c"leader", Figure::Text(&number(status.leader)));
    each(c"epoch", Figure::Number(status.epoch));
    each(c"voter", Figure::Number(status.voter.into()));
    each(c"commit_index", Figure::Number(status.commit));
    each(c"applied_index", Figure::Number(status.applied));
    each(c"stream_position", Figure::Number(node.position()));
    each(c"feed_pending_bytes", Figure::Number(node.feed.pending()));
    each(c"turns_decided", count(&node.counters.turns));
    each(c"bytes_decided", count(&node.counters.bytes));
    each(c"reads_proved", count(&node.counters.proofs));
    for peer in &status.peers {
        let text = format!(
            "alive={},lag={}",
            u8::from(peer.alive),
            match peer.matched {
                Some(matched) => status.commit.saturating_sub(matched).to_string(),
                None => "unknown".into(),
            }
        );
        let name = format!("peer{}\0", peer.id);
        if let Ok(name) = CStr::from_bytes_with_nul(name.as_bytes()) {
            each(name, Figure::Text(&text));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_list_becomes_the_command_that_makes_the_user() {
        let line = words(b"user a on #12 ~x* resetchannels -@all +get (%R~k +set)");
        let made = set_user(&line).join(&b' ');
        assert_eq!(
            made,
            b"setuser a reset on #12 ~x* resetchannels -@all +get (%R~k +set)"
        );
        assert!(set_user(&words(b"user")).is_empty());
    }

    #[test]
    fn users_are_changed_by_two_words_only() {
        assert!(changes_users(b"SetUser") && changes_users(b"deluser"));
        for word in [&b"load"[..], b"save", b"log", b"genpass", b""] {
            assert!(!changes_users(word), "{}", String::from_utf8_lossy(word));
        }
    }
}
