//! Calls into the program.

use std::ffi::CString;

use smr::Command;

use super::types::{MuCallbacks, MuCommand, MuRole};
use crate::code::{Fault, MuResult};
use crate::scope;

/// The program's functions, complete.
pub(crate) struct Callbacks(MuCallbacks);

// SAFETY: the header says on which threads the functions are called, and that `user` has to be good there; nothing else
// is done with the pointer.
unsafe impl Send for Callbacks {}
// SAFETY: as above; calls come one at a time, from the thread that replicates.
unsafe impl Sync for Callbacks {}

const NEVER: i32 = -1;

impl Callbacks {
    pub(super) fn new(callbacks: MuCallbacks) -> Result<Self, Fault> {
        for (name, is_there) in [
            ("apply", callbacks.apply.is_some()),
            ("save", callbacks.save.is_some()),
            ("load", callbacks.load.is_some()),
        ] {
            if !is_there {
                return Err(Fault::argument(format!("the {name} callback is NULL")));
            }
        }
        Ok(Self(callbacks))
    }

    pub(crate) fn apply(&self, command: &Command<'_>, flags: u32, reply: &mut Vec<u8>) -> i32 {
        let command = MuCommand {
            index: command.index,
            time_ns: command.time_ns,
            client: command.client,
            sequence: command.sequence,
            data: command.bytes.as_ptr(),
            len: command.bytes.len(),
            place: command.place.into(),
            flags,
        };
        let apply = self.0.apply;
        scope::writing(reply, |sink| {
            // SAFETY: the program vouches for the function; the command lives until it returns.
            apply.map_or(NEVER, |apply| unsafe { apply(self.0.user, &command, sink) })
        })
    }

    pub(crate) fn save(&self, out: &mut Vec<u8>) -> i32 {
        let save = self.0.save;
        scope::writing(out, |sink| {
            // SAFETY: the program vouches for the function.
            save.map_or(NEVER, |save| unsafe { save(self.0.user, sink) })
        })
    }

    pub(crate) fn load(&self, bytes: &[u8]) -> i32 {
        let load = self.0.load;
        scope::reading(bytes, |source| {
            // SAFETY: the program vouches for the function.
            load.map_or(NEVER, |load| unsafe { load(self.0.user, source) })
        })
    }

    pub(crate) fn digest(&self) -> u64 {
        let Some(digest) = self.0.digest else {
            return 0;
        };
        // SAFETY: the program vouches for the function.
        scope::plain(|| unsafe { digest(self.0.user) })
    }

    pub(crate) fn role(&self, role: &MuRole) {
        if let Some(tell) = self.0.role {
            // SAFETY: the program vouches for the function; the role lives until it returns.
            scope::plain(|| unsafe { tell(self.0.user, role) });
        }
    }

    pub(crate) fn fatal(&self, code: MuResult, text: &str) {
        let text = CString::new(text.replace('\0', " ")).unwrap_or_default();
        if let Some(tell) = self.0.fatal {
            // SAFETY: the program vouches for the function; the text lives until it returns.
            scope::plain(|| unsafe { tell(self.0.user, code, text.as_ptr()) });
        }
    }
}
