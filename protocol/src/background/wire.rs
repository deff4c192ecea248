//! One end of a link with its queue pair: carries out what [`Line`] decides.

use mu_verbs::{Access, Capabilities, Context, Modify, QpControl, QpState, RtrAttr, RtsAttr};

use super::link::Line;
use crate::message::{Connect, Link};

/// One end of a link.
pub(crate) struct Wire<C: Context> {
    pub(crate) line: Line,
    link: Link,
    control: C::Control,
    /// The flags at INIT: never more than what the peer may always do.
    access: Access,
    reads: u8,
    rts: RtsAttr,
}

impl<C: Context> Wire<C> {
    /// For a queue pair in RESET whose peer may do `access`. It takes the peer for gone when nothing came back for
    /// about `silence_ns`, and stays in ERR for `drain_ns` before a reset.
    pub(crate) fn new(
        link: Link,
        control: C::Control,
        access: Access,
        caps: &Capabilities,
        silence_ns: u64,
        drain_ns: u64,
    ) -> Self {
        let reads = caps.max_qp_rd_atom.clamp(1, 16) as u8;
        Self {
            line: Line::new(drain_ns),
            link,
            control,
            access,
            reads,
            rts: RtsAttr {
                max_rd_atomic: reads,
                ..retries(silence_ns)
            },
        }
    }

    /// To ERR. Whether that worked is not asked: a queue pair that cannot go there can still be reset.
    pub(crate) fn close(&self) {
        let _ = self.control.modify(&Modify::Err);
    }

    /// To INIT, through RESET if it was used.
    pub(crate) fn open(&self, fresh: bool) -> bool {
        (fresh || self.control.modify(&Modify::Reset).is_ok())
            && self.control.modify(&Modify::Init(self.access)).is_ok()
    }

    /// To RTS, connected to the sender of `heard`.
    pub(crate) fn connect(&self, heard: &Connect) -> bool {
        let rtr = RtrAttr {
            max_dest_rd_atomic: self.reads,
            ..RtrAttr::new(heard.endpoint)
        };
        self.control.modify(&Modify::Rtr(rtr)).is_ok()
            && self.control.modify(&Modify::Rts(self.rts)).is_ok()
    }

    /// Whether the queue pair has failed although the line takes it for connected.
    pub(crate) fn has_failed(&self) -> bool {
        self.line.peer_generation().is_some()
            && matches!(self.control.state(), Ok(state) if state != QpState::Rts)
    }

    /// What is to be said to the peer now.
    pub(crate) fn take_message(&mut self) -> Option<Connect> {
        let (generation, echo, connected) = self.line.take_say()?;
        Some(Connect {
            link: self.link,
            generation,
            echo,
            connected,
            endpoint: self.control.endpoint(),
        })
    }
}

/// Packets are sent again this often ...
const RETRIES: u8 = 6;

/// ... with a time-out that makes it about `silence_ns` in all.
fn retries(silence_ns: u64) -> RtsAttr {
    let one_ns = silence_ns / (u64::from(RETRIES) + 1);
    let timeout = (1..31).find(|code| 4096u64 << code >= one_ns);
    RtsAttr {
        timeout: timeout.unwrap_or(31),
        retry_cnt: RETRIES,
        ..RtsAttr::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_as_long_as_asked_within_a_factor_of_two() {
        for silence_ns in [1_000_000, 5_000_000, 50_000_000, 3_000_000_000] {
            let attr = retries(silence_ns);
            let all_ns = (4096u64 << attr.timeout) * (u64::from(attr.retry_cnt) + 1);
            assert!(
                (silence_ns..=2 * silence_ns).contains(&all_ns),
                "{all_ns} for {silence_ns}"
            );
        }
        assert_eq!(
            (retries(0).timeout, retries(u64::MAX).timeout),
            (1, 31),
            "never 0, which waits for ever"
        );
    }
}
