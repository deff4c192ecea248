//! The application with a clock around it.

use std::sync::Arc;

use mu_protocol::machine::{Command, RestoreError, StateMachine};

use super::common::Common;
use super::stages::{SAMPLE, Stage};

/// Times one of [`SAMPLE`] applications.
pub(crate) struct Timed<S> {
    pub(crate) app: S,
    common: Arc<Common>,
    count: u64,
}

impl<S> Timed<S> {
    pub(crate) fn new(app: S, common: Arc<Common>) -> Self {
        Self {
            app,
            common,
            count: 0,
        }
    }
}

impl<S: StateMachine> StateMachine for Timed<S> {
    #[inline]
    fn apply(&mut self, command: &Command<'_>, reply: &mut Vec<u8>) {
        self.count += 1;
        if !self.count.is_multiple_of(SAMPLE) {
            return self.app.apply(command, reply);
        }
        let start_ns = self.common.clock.now_ns();
        self.app.apply(command, reply);
        self.common
            .record(Stage::Apply, self.common.clock.now_ns() - start_ns);
    }

    fn digest(&self) -> u64 {
        self.app.digest()
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        self.app.snapshot(out);
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.app.restore(bytes)
    }
}
