//! Queue pairs: posting.

use mu_sys::ibv_qp_cap;

use super::batch::{Limits, MAX_SGE};
use super::raw_post::{self, Refused};
use super::raw_queues::QpOwner;
use super::{Nic, NicControl, NicMr, verb_error};
use crate::{Context, Error, PostError, QpCap, QpState, QueuePair, RecvWr, Wr};

/// A reliably connected queue pair (`struct ibv_qp`), posted on by its one owner.
pub struct NicQp {
    owner: QpOwner,
    limits: Limits,
    cap: QpCap,
    control: NicControl,
}

impl NicQp {
    pub(super) fn new(nic: &Nic, owner: QpOwner, got: &ibv_qp_cap) -> Self {
        // What is built on the stack has room for so many pieces, however many the device grants.
        let sges = |n: u32| n.min(MAX_SGE as u32);
        let cap = QpCap {
            max_send_wr: got.max_send_wr,
            max_recv_wr: got.max_recv_wr,
            max_send_sge: sges(got.max_send_sge),
            max_recv_sge: sges(got.max_recv_sge),
            max_inline_data: got.max_inline_data,
        };
        let limits = Limits {
            device: nic.id(),
            max_send_sge: cap.max_send_sge as usize,
            max_recv_sge: cap.max_recv_sge as usize,
            max_inline: cap.max_inline_data as usize,
            max_msg: nic.caps().max_msg,
        };
        let control = NicControl::new(nic, owner.shared());
        Self {
            owner,
            limits,
            cap,
            control,
        }
    }

    /// Requests are taken in RTS, and in ERR, where they are flushed.
    #[inline]
    fn check_send_state(&self) -> Result<(), PostError> {
        match self.control.last_state() {
            QpState::Rts | QpState::Err => Ok(()),
            state => Err(self.wrong_state(state)),
        }
    }

    #[cold]
    fn wrong_state(&self, state: QpState) -> PostError {
        PostError::WrongState {
            qp_num: self.control.number(),
            state,
        }
    }

    #[cold]
    fn post_error(&self, refused: Refused, depth: u32) -> PostError {
        let qp_num = self.control.number();
        match refused {
            Refused::Check(error) => error,
            Refused::Provider(libc::ENOMEM) => PostError::QueueFull { qp_num, depth },
            Refused::Provider(errno @ libc::EOPNOTSUPP) => PostError::Invalid {
                what: "the device does not offer the operation",
                errno,
            },
            // Another thread may have changed the state since it was looked at.
            Refused::Provider(libc::EINVAL)
                if matches!(self.control.last_state(), QpState::Reset | QpState::Init) =>
            {
                self.wrong_state(self.control.last_state())
            }
            Refused::Provider(errno) => PostError::Device { qp_num, errno },
        }
    }
}

impl QueuePair<Nic> for NicQp {
    fn control(&self) -> &NicControl {
        &self.control
    }

    fn cap(&self) -> QpCap {
        self.cap
    }

    #[inline]
    fn post_send(&mut self, wr: &Wr<'_, Nic>) -> Result<(), PostError> {
        self.check_send_state()?;
        raw_post::send(&mut self.owner, wr, &self.limits)
            .map_err(|e| self.post_error(e, self.cap.max_send_wr))
    }

    /// As the trait has it: one doorbell for each 32 requests, and one more after each window bind.
    fn post_send_list(&mut self, wrs: &[Wr<'_, Nic>]) -> Result<(), (usize, PostError)> {
        self.check_send_state().map_err(|error| (0, error))?;
        raw_post::send_list(&mut self.owner, wrs, &self.limits)
            .map_err(|(posted, e)| (posted, self.post_error(e, self.cap.max_send_wr)))
    }

    #[inline]
    fn post_recv(&mut self, wr: &RecvWr<'_, NicMr>) -> Result<(), PostError> {
        if self.control.last_state() == QpState::Reset {
            return Err(self.wrong_state(QpState::Reset));
        }
        raw_post::recv(&mut self.owner, wr, &self.limits)
            .map_err(|e| self.post_error(e, self.cap.max_recv_wr))
    }

    fn close(self) -> Result<(), Error> {
        let qp_num = self.control.number();
        self.owner
            .end()
            .map_err(|error| verb_error("ibv_destroy_qp", error, format!(": QP {qp_num}")))
    }
}
