//! The application as the engines see it: every call goes to one of the program's functions.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use smr::host::{Halted, Part, Watch};
use smr::protocol::layout::Role;
use smr::{Command, ReplicaId, RestoreError, StateMachine};

use crate::code::MU_STOPPED;
use crate::raw::{Callbacks, MU_APPLY_LEADER, MU_APPLY_REPLAY, MU_NO_LEADER, MuRole};

/// What the application knows of its replica.
pub(crate) struct Situation {
    role: AtomicU8,
    /// What the program was told last.
    told: Mutex<Option<MuRole>>,
    fatal: AtomicBool,
    /// Why a callback ended the replica.
    why: Mutex<Option<String>>,
    callbacks: Callbacks,
}

impl Situation {
    pub(crate) fn new(callbacks: Callbacks) -> Arc<Self> {
        Arc::new(Self {
            role: AtomicU8::new(Role::Recovering as u8),
            told: Mutex::new(None),
            fatal: AtomicBool::new(false),
            why: Mutex::new(None),
            callbacks,
        })
    }

    /// Tells the program of every change.
    pub(crate) fn watch(self: &Arc<Self>) -> Watch {
        let this = Arc::clone(self);
        Watch::new(move |part| this.changed(part))
    }

    fn changed(&self, part: &Part) {
        self.role.store(part.standing.role as u8, Ordering::Relaxed);
        let role = MuRole {
            epoch: part.epoch.0,
            role: part.standing.role as u32,
            voter: part.standing.voter.into(),
            leader: part.leader.map_or(MU_NO_LEADER, ReplicaId::get),
        };
        let told = self.told.lock();
        let told = told.unwrap_or_else(PoisonError::into_inner).replace(role);
        if told != Some(role) {
            self.callbacks.role(&role);
        }
        if let Some(why) = part.stopped {
            self.halted(why);
        }
    }

    /// The replica has stopped; if nobody asked it to, the program is told, once.
    pub(crate) fn halted(&self, why: Halted) {
        if why == Halted::Asked || self.fatal.swap(true, Ordering::Relaxed) {
            return;
        }
        let said = self.why.lock().unwrap_or_else(PoisonError::into_inner);
        let text = said.clone().unwrap_or_else(|| why.to_string());
        drop(said);
        self.callbacks.fatal(MU_STOPPED, &text);
    }

    /// What a callback said ends the replica, as an application's panic does.
    fn fail(&self, what: &str, code: i32) -> ! {
        let text = format!("the {what} callback returned {code}");
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = Some(text.clone());
        resume_unwind(Box::new(text))
    }
}

/// The application.
pub(crate) struct App(pub(crate) Arc<Situation>);

impl StateMachine for App {
    fn apply(&mut self, command: &Command<'_>, reply: &mut Vec<u8>) {
        let role = self.0.role.load(Ordering::Relaxed);
        let flags = match role {
            role if role == Role::Leader as u8 => MU_APPLY_LEADER,
            role if role <= Role::Learner as u8 => MU_APPLY_REPLAY,
            _ => 0,
        };
        match self.0.callbacks.apply(command, flags, reply) {
            0 => {}
            code => self.0.fail("apply", code),
        }
    }

    fn digest(&self) -> u64 {
        self.0.callbacks.digest()
    }

    fn snapshot(&self, out: &mut Vec<u8>) {
        match self.0.callbacks.save(out) {
            0 => {}
            code => self.0.fail("save", code),
        }
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        match self.0.callbacks.load(bytes) {
            0 => Ok(()),
            code => Err(RestoreError(format!("the load callback returned {code}"))),
        }
    }
}
