//! A replicated counter: three replicas in one process, and a command that a majority has before it is answered.

use std::time::Duration;

use mu::{Command, Group, RestoreError, StateMachine};

#[derive(Default)]
struct Counter(u64);

impl StateMachine for Counter {
    fn apply(&mut self, command: &Command<'_>, reply: &mut Vec<u8>) {
        self.0 += command.bytes.len() as u64;
        reply.extend(self.0.to_string().bytes());
    }
    fn digest(&self) -> u64 {
        self.0
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        out.extend(self.0.to_le_bytes());
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        let bytes = bytes
            .try_into()
            .map_err(|_| RestoreError("not 8 bytes".into()))?;
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut group = Group::start(3, Counter::default)?;
    let wait = Duration::from_secs(5);
    println!("{:?}", group.propose(1, 1, b"three", wait)?);
    let leader = group.leader(wait).expect("one leads").id();
    group.stop(leader.get());
    println!("{:?}", group.propose(1, 2, b"four", wait)?);
    Ok(())
}
