//! Makes the server a primary when this node leads.
//!
//! Not before the server has applied everything that was decided, and not while its append-only file is in the making:
//! until that is done Redis may run commands that it writes to no file, which would be acknowledged and not decided.
//! Both are looked at, and the server is turned, in one stretch of Redis's global lock, in which it runs no command.

use std::time::{Duration, Instant};

use crate::module::Replication;
use crate::node::{self, Mode, Node};
use crate::setup::Fault;
use crate::{hooks_raw, module, module_raw, report};

/// Looks at least so often. The leadership ends it early.
const LOOK: Duration = Duration::from_millis(20);
/// The first pause between two looks at a server that is not there yet; it doubles.
const PAUSE: Duration = Duration::from_micros(50);
const PAUSE_MOST: Duration = Duration::from_millis(2);
/// After so long a word about why the server does not become a primary.
const COMPLAIN: Duration = Duration::from_secs(3);

pub(crate) fn run(node: &'static Node) {
    if let Some(what) = module::misconfigured() {
        eprintln!("mu: the server's {what}: start it with mu redis, which sets it");
        hooks_raw::exit_now(node::MISCONFIGURED);
    }
    let mut told = None;
    loop {
        if node.mode() == Mode::Follower && node.leads() {
            promote(node);
        }
        // One that gets another dataset has no role for a while, and tells it again.
        let now = told_role(node);
        if let Some(role) = now
            && now != told
        {
            report::tell(node, role);
        }
        told = now;
        if node.setup.fault == Some(Fault::PrimaryUnasked) && now == Some("follower") {
            let _ = module_raw::with_server(|server| server.become_primary());
        }
        node.wait(LOOK);
    }
}

/// The server has become a primary. If that was none of this node's doing the process ends, before the server runs
/// another command: it would answer to writes that nobody decides. Called under the server's global lock.
pub(crate) fn became_primary() {
    if node::get().is_none_or(|node| node.mode() == Mode::Follower) {
        node::end("the server has become a primary, and this node has not made it one");
    }
}

/// What is told of the role: nothing before the server has its dataset.
fn told_role(node: &Node) -> Option<&'static str> {
    match node.mode() {
        Mode::Leader => Some("leader"),
        Mode::Follower if node.feed.has_been_fed() => Some("follower"),
        Mode::Follower => None,
    }
}

/// What a look at the server gave.
enum Found {
    Turned,
    NotYet(Replication),
    /// The proof is void: another replica has led since.
    Void,
}

/// Makes the server a primary, or gives up as the node does not lead any more.
fn promote(node: &Node) {
    // What was decided by earlier leaders ends here: what follows can only be decided by this node.
    let position = match node.engine().prove() {
        Ok(position) => position,
        Err(error) => {
            tracing::info!(%error, "not a primary yet");
            return;
        }
    };
    let (mut pause, mut since) = (PAUSE, Instant::now());
    while node.leads() {
        let found = module_raw::with_server(|server| {
            // The office may be lost while this thread waits for the lock, and then another leader's bytes may come.
            if !node.leads() || node.position() != position {
                return Found::Void;
            }
            let state = server.replication();
            if state.position != Some(position) || state.file_in_the_making {
                return Found::NotYet(state);
            }
            if !node.lead(position) {
                return Found::Void;
            }
            if let Err(why) = server.become_primary() {
                node::end(&format!("REPLICAOF NO ONE: {why}"));
            }
            Found::Turned
        });
        let state = match found {
            Found::NotYet(state) => state,
            Found::Turned => {
                tracing::info!(position, "this server is the primary");
                return;
            }
            Found::Void => {
                tracing::info!(position, "not a primary: the office was lost");
                return;
            }
        };
        if since.elapsed() > COMPLAIN {
            since = Instant::now();
            tracing::warn!(
                ?state,
                position,
                "this node leads, and its server is not ready yet"
            );
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MOST);
    }
}
