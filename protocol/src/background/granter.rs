//! The rights to the own log: carries out what the [`Arbiter`] decides.

use mu_verbs::rights::{PeerRight, RightAttr, RightError, RightState};
use mu_verbs::{Access, Context, Memory};

use super::arbiter::{Act, Arbiter, Asking};
use super::view::Counters;
use super::{BackgroundError, PerPeer};
use crate::ids::{Epoch, Members, ReplicaId};
use crate::layout::{Ack, Role, Standing, public, row};
use crate::limits::MAX_REPLICAS;
use crate::shared::{Board, Shared};
use crate::zoo::{Bug, Zoo};

/// See the module.
pub(crate) struct Granter<C: Context, Z: Zoo> {
    arbiter: Arbiter<Z>,
    rights: PerPeer<PeerRight<C>>,
    zoo: Z,
    /// After a failed revocation or grant: not before then.
    again_ns: u64,
    pause_ns: u64,
    promised_ns: u64,
    /// What the shared word says.
    published: Option<ReplicaId>,
    /// The own replication engine was told to lead since it last said that it had stopped: it may be in the middle of
    /// writing the own log.
    own_writes: bool,
}

/// What a round of acts leaves to others.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Settled {
    /// Something was done.
    pub(crate) worked: bool,
    /// Peers whose outbox row changed.
    pub(crate) changed: Members,
    /// Peers whose log link turned out to be broken.
    pub(crate) broken: Members,
    /// Peers whose log link has to be made anew, since their right was taken away.
    pub(crate) retired: Members,
}

/// Acts of one poll: every peer once with each kind, and then some.
const MAX_ACTS: usize = 4 * MAX_REPLICAS;

impl<C: Context, Z: Zoo> Granter<C, Z> {
    /// Nobody may write the first `bytes` of `log` yet.
    pub(crate) fn new(
        ctx: &C,
        pd: &C::Pd,
        log: (&Memory, usize),
        controls: &PerPeer<C::Control>,
        pause_ns: u64,
        zoo: Z,
    ) -> Result<Self, BackgroundError> {
        let mut rights = [const { None }; MAX_REPLICAS];
        for (right, control) in rights.iter_mut().zip(controls) {
            if let Some(control) = control {
                let new = PeerRight::new(ctx, pd, control, log.0, 0..log.1, RightAttr::LOG)?;
                *right = Some(new);
            }
        }
        Ok(Self {
            arbiter: Arbiter::new(zoo),
            rights,
            zoo,
            again_ns: 0,
            pause_ns,
            promised_ns: 0,
            published: None,
            own_writes: false,
        })
    }

    /// The state of it.
    pub(crate) fn arbiter(&self) -> &Arbiter<Z> {
        &self.arbiter
    }

    /// When the last promise was made.
    pub(crate) fn promised_ns(&self) -> u64 {
        self.promised_ns
    }

    /// The flags with which the log queue pair of `peer` goes to INIT.
    pub(crate) fn init_access(&self, peer: ReplicaId) -> Access {
        self.right(peer).init_access()
    }

    /// Makes `epoch` the promise: the own candidacy ends before that, and nothing is granted until the holder's right
    /// is revoked.
    pub(crate) fn promise(&mut self, epoch: Epoch, shared: &Shared, board: &Board, now_ns: u64) {
        shared.set_candidate(Epoch::NONE);
        shared.promise(epoch);
        self.arbiter.promised(epoch);
        board.set_public(public::PROMISED, epoch.0);
        self.promised_ns = now_ns;
    }

    /// The own replication engine is about to be told to lead.
    pub(crate) fn own_leads(&mut self) {
        self.own_writes = true;
    }

    /// Whether the own engine may still write the own log, although another one got the promise. It is a holder like
    /// any other: a thread that was told to lead can be preempted between looking at its candidacy and storing an
    /// entry, for as long as the scheduler likes.
    fn own_engine_writes(&mut self, shared: &Shared) -> bool {
        self.own_writes = self.own_writes && shared.left() < self.arbiter.promise();
        self.own_writes && !self.zoo.has(Bug::SkipSelfFence)
    }

    /// Answers requests as far as possible now.
    pub(crate) fn settle(
        &mut self,
        asking: &[Asking; MAX_REPLICAS],
        shared: &Shared,
        board: &Board,
        counters: &mut Counters,
        now_ns: u64,
    ) -> Settled {
        let (grants, voter) = self.may_grant(board);
        let mut settled = Settled::default();
        if !grants && self.arbiter.holder().is_some() {
            // Its log is no longer what a leader may count on, or is about to be filled anew.
            self.arbiter.withdraw();
        }
        if now_ns < self.again_ns {
            return settled;
        }
        for _ in 0..MAX_ACTS {
            let Some(act) = self.arbiter.next(asking, grants) else {
                break;
            };
            settled.worked = true;
            match act {
                Act::Promise(epoch) => self.promise(epoch, shared, board, now_ns),
                Act::Revoke(from) => {
                    if !self.revoke(from, counters) {
                        self.again_ns = now_ns + self.pause_ns;
                        break;
                    }
                    // What it posted may still be on its way. A later grant must not let that land on what others write
                    // in between: with a new connection the old packets go nowhere. If it is the next holder itself,
                    // nobody writes in between, and it waits for its own requests before it begins; but a replica that
                    // catches up writes its log itself, and then the holder must notice that it has lost the right.
                    let next = grants && self.arbiter.promise().owner() == Some(from);
                    if !next && !self.zoo.has(Bug::StaleRequests) {
                        settled.retired = settled.retired.with(from);
                    }
                }
                Act::Refuse { to, epoch } => {
                    self.arbiter.refused(to, epoch);
                    counters.refusals += 1;
                    self.answer(
                        board,
                        to,
                        Ack {
                            epoch,
                            promised: self.arbiter.promise(),
                            incarnation: board.public(public::INCARNATION),
                            voter,
                            ..Ack::default()
                        },
                    );
                    settled.changed = settled.changed.with(to);
                }
                Act::Grant {
                    to,
                    epoch,
                    generation,
                    again,
                } => {
                    if self.own_engine_writes(shared) {
                        break;
                    }
                    self.publish(Some(to), shared);
                    if !self.may_grant(board).0 {
                        break;
                    }
                    let Some(ack) = self.grant(to, board, counters) else {
                        settled.broken = settled.broken.with(to);
                        self.again_ns = now_ns + self.pause_ns;
                        break;
                    };
                    self.arbiter.granted(to, epoch, generation);
                    self.assert_exclusive();
                    self.answer(
                        board,
                        to,
                        Ack {
                            epoch,
                            promised: epoch,
                            granted: true,
                            voter,
                            generation,
                            ..ack
                        },
                    );
                    if again {
                        counters.grants_again += 1;
                    } else {
                        counters.grants += 1;
                        counters.last_switch_ns = now_ns.saturating_sub(self.promised_ns);
                    }
                    settled.changed = settled.changed.with(to);
                }
            }
        }
        settled
    }

    /// Says who may write the own log: `own` if nobody else may.
    pub(crate) fn publish_holder(&mut self, own: Option<ReplicaId>, shared: &Shared) {
        let leaving = self.arbiter.leaving().iter().next();
        self.publish(leaving.or(self.arbiter.holder()).or(own), shared);
    }

    fn publish(&mut self, holder: Option<ReplicaId>, shared: &Shared) {
        if std::mem::replace(&mut self.published, holder) != holder {
            shared.set_holder(holder);
        }
    }

    /// Whether this replica grants at all, and whether its grants count.
    fn may_grant(&self, board: &Board) -> (bool, bool) {
        let standing = Standing::from_word(board.public(public::STANDING));
        let amnesiac = standing.role == Role::Recovering && self.zoo.has(Bug::AmnesiacVotes);
        (
            standing.role >= Role::Learner || amnesiac,
            standing.voter || amnesiac,
        )
    }

    /// A new poll begins.
    pub(crate) fn turn(&mut self) {
        self.arbiter.turn();
    }

    /// Another life of `peer` begins; its link is reset as well, which takes the right away.
    pub(crate) fn forget(&mut self, peer: ReplicaId) {
        self.arbiter.forget(peer);
    }

    /// Takes the right of `peer` away: for another holder, or before its link is reset. Whether that is certain.
    pub(crate) fn revoke(&mut self, peer: ReplicaId, counters: &mut Counters) -> bool {
        let right = self.rights[peer.index()]
            .as_mut()
            .expect("a member has a right");
        if right.state() != RightState::Fenced {
            // Without a queue pair to post on: the methods that need one are left out. The others are enough on every
            // device known, and the peer's word is never asked for.
            match right.revoke_fully(None) {
                Ok(revoked) => counters.revoked(revoked.method),
                Err(_) => {
                    counters.failed_revocations += 1;
                    self.arbiter.not_revoked(peer);
                    return false;
                }
            }
        }
        self.arbiter.revoked(peer);
        true
    }

    /// Grants and fills in the answer what only this replica knows. `None` if the grant failed: the right is revoked
    /// before anything else then.
    fn grant(&mut self, to: ReplicaId, board: &Board, counters: &mut Counters) -> Option<Ack> {
        let right = self.rights[to.index()]
            .as_mut()
            .expect("a member has a right");
        match right.grant(None) {
            Ok(grant) => {
                let (applied, applied_at) = applied(board);
                Some(Ack {
                    incarnation: board.public(public::INCARNATION),
                    addr: grant.remote.addr,
                    rkey: grant.remote.rkey,
                    applied,
                    applied_at,
                    ..Ack::default()
                })
            }
            Err(error) => {
                counters.failed_grants += 1;
                if !matches!(error, RightError::NotConnected { .. }) {
                    self.arbiter.not_revoked(to);
                }
                None
            }
        }
    }

    fn answer(&self, board: &Board, to: ReplicaId, ack: Ack) {
        board.set_out_record(to, row::ACK, ack.to_words());
    }

    /// At most one replica can write this log.
    fn assert_exclusive(&self) {
        let granted = self.rights.iter().flatten();
        let granted = granted
            .filter(|right| right.state() == RightState::Granted)
            .count();
        let excused = self.zoo.has(Bug::GrantWithoutRevoke) || self.zoo.has(Bug::AckBeforeRevoke);
        assert!(
            granted <= 1 || excused,
            "{granted} replicas may write one log"
        );
    }

    fn right(&self, peer: ReplicaId) -> &PeerRight<C> {
        self.rights[peer.index()]
            .as_ref()
            .expect("a member has a right")
    }
}

/// Index and position of what was applied. The other engine writes the position first, so the one read between two
/// equal indices is that of the index, or of the entry being published just now.
fn applied(board: &Board) -> (u64, u64) {
    let mut index = board.public(public::APPLIED);
    loop {
        let at = board.public(public::APPLIED_AT);
        let now = board.public(public::APPLIED);
        if now == index {
            return (index, at);
        }
        index = now;
    }
}
