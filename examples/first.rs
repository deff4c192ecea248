//! A replicated counter: three replicas in one process. Whatever is answered, a majority has.
use mu::{Command, Group, RestoreError, StateMachine};

#[derive(Default)]
struct Counter(u8);

impl StateMachine for Counter {
    fn apply(&mut self, command: &Command<'_>, reply: &mut Vec<u8>) {
        self.0 += command.bytes[0];
        reply.push(self.0);
    }
    fn digest(&self) -> u64 {
        self.0.into()
    }
    fn snapshot(&self, out: &mut Vec<u8>) {
        out.push(self.0);
    }
    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.0 = *bytes.first().ok_or(RestoreError("empty".into()))?;
        Ok(())
    }
}

pub(crate) fn main() {
    let patience = std::time::Duration::from_secs(10);
    let group = Group::start(3, Counter::default).expect("threads and memory");
    let reply = group.propose(1, 1, &[42], patience).expect("a majority");
    assert_eq!(reply.bytes, [42]);
    println!("entry {} was decided: {:?}", reply.index, reply.bytes);
}
