//! Completion queues.

use super::raw_post::CqOwner;
use crate::{Completion, CompletionQueue};

/// A completion queue (`struct ibv_cq`), polled by its one owner. It is destroyed when it and the queue pairs that use
/// it are gone.
pub struct NicCq {
    pub(super) owner: CqOwner,
    depth: u32,
    error: Option<i32>,
}

impl NicCq {
    pub(super) fn new(owner: CqOwner, depth: u32) -> Self {
        Self {
            owner,
            depth,
            error: None,
        }
    }

    /// The number of completions it was asked to hold.
    pub fn depth(&self) -> u32 {
        self.depth
    }
}

impl CompletionQueue for NicCq {
    #[inline]
    fn poll(&mut self, out: &mut [Completion]) -> usize {
        let (count, error) = self.owner.poll(out);
        if error.is_some() {
            self.error = error;
        }
        count
    }

    /// The errno with which the provider last refused to poll: the queue overran or the device is gone.
    fn error(&self) -> Option<i32> {
        self.error
    }
}
