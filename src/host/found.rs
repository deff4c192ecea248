//! Whether there is a group already, so that nothing is to be founded.

use std::io::ErrorKind;
use std::thread;
use std::time::{Duration, Instant};

use super::background::REPORT_NS;
use super::error::StartError;
use super::status::Status;
use crate::config::{Config, Member};
use crate::control::{QueryError, query_status};

/// A peer that is there is asked for its history for so long ...
const ASK: Duration = Duration::from_secs(10);
/// ... with such pauses.
const ASK_PAUSE: Duration = Duration::from_millis(50);
/// What a peer says is at most this old. The group may have decided its first entry since, with the vote of this
/// replica's last life; so one that says that there is nothing is asked again after that time.
const STALE: Duration = Duration::from_nanos(2 * REPORT_NS);

/// Whether a peer of member `id` has decided something: then a replica that was told to found the group has to recover
/// from it. To be asked before the own control address is taken.
///
/// # Errors
/// A peer's process is there and does not say, or nobody knows whether it is there. To found a group beside one that
/// exists would make this replica vote without the memory that the others believe it has.
pub fn has_history(config: &Config, id: u8) -> Result<bool, StartError> {
    let others = config.members().iter().filter(|member| member.id != id);
    let asked: Vec<Result<u64, StartError>> = thread::scope(|scope| {
        let asks: Vec<_> = others
            .map(|member| scope.spawn(move || history_of(config, member)))
            .collect();
        let joined = asks.into_iter().map(|asked| asked.join());
        joined
            .map(|asked| asked.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    let mut silent = None;
    for answer in asked {
        match answer {
            Ok(0) => {}
            Ok(commit) => {
                tracing::warn!(
                    commit,
                    "not founded: the group has a history already; this replica recovers from it"
                );
                return Ok(true);
            }
            Err(error) => silent = Some(error),
        }
    }
    silent.map_or(Ok(false), Err)
}

/// The last entry that a peer knows; 0 if no process is there, which only its host can say: one that cannot be reached
/// may have a process, and so may one for which this process had no descriptor left.
fn history_of(config: &Config, member: &Member) -> Result<u64, StartError> {
    let (Some(control), Some(psk)) = (member.control, config.psk()) else {
        return Ok(0);
    };
    let begin = Instant::now();
    let mut asked_again = false;
    loop {
        let reason = match query_status(control, psk, config.cluster()) {
            Ok(bytes) => match serde_json::from_slice::<Status>(&bytes) {
                Ok(status) => {
                    let known = status.commit.max(status.applied);
                    if known > 0 || asked_again {
                        return Ok(known);
                    }
                    asked_again = true;
                    thread::sleep(STALE);
                    continue;
                }
                Err(_) => "it has nothing to say yet".into(),
            },
            Err(QueryError::Unreachable { source, .. })
                if source.kind() == ErrorKind::ConnectionRefused =>
            {
                return Ok(0);
            }
            Err(error) => error.to_string(),
        };
        if begin.elapsed() > ASK {
            return Err(StartError::Silent {
                id: member.id,
                reason,
            });
        }
        thread::sleep(ASK_PAUSE);
    }
}
