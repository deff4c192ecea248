//! One end of a connection: memory, its registration, a completion queue and a queue pair.

use anyhow::{Context as _, Result, bail, ensure};
use mu_verbs::{
    Access, Completion, CompletionQueue, Context, Endpoint, Memory, MemoryRegion, Modify, Payload,
    QpCap, QpControl, QpState, QueuePair, RemoteAddr, RtrAttr, RtsAttr, SendFlags, SendOp, SendWr,
    WcStatus,
};
use serde::{Deserialize, Serialize};

use crate::bench::peer::Link;
use crate::bench::spin::Spin;

/// Requests outstanding at most.
pub(crate) const DEPTH: u32 = 128;

/// One end.
pub(crate) struct End<C: Context> {
    pub(crate) ctx: C,
    pub(crate) pd: C::Pd,
    pub(crate) memory: Memory,
    pub(crate) mr: C::Mr,
    pub(crate) cq: C::Cq,
    pub(crate) qp: C::Qp,
}

/// What the two ends tell each other.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    endpoint: Vec<u8>,
    addr: u64,
    rkey: u32,
}

impl<C: Context> End<C> {
    /// An end in INIT whose memory of `bytes` bytes the peer may use as `access` says, for inline payloads of up to
    /// `inline` bytes.
    pub(crate) fn open(ctx: &C, bytes: usize, access: Access, inline: usize) -> Result<Self> {
        let pd = ctx.alloc_pd()?;
        let memory = ctx
            .alloc_memory(bytes)
            .with_context(|| format!("{bytes} bytes of memory"))?;
        let mr = ctx.reg_mr(&pd, &memory, 0..memory.len(), Access::LOCAL_WRITE | access)?;
        let cq = ctx.create_cq(4 * DEPTH)?;
        let cap = QpCap {
            max_send_wr: DEPTH,
            max_recv_wr: 16,
            max_send_sge: 1,
            max_recv_sge: 1,
            max_inline_data: u32::try_from(inline).context("an inline payload")?,
        };
        let qp = ctx.create_qp(&pd, &cq, &cq, &cap)?;
        qp.control().modify(&Modify::Init(access))?;
        Ok(Self {
            ctx: ctx.clone(),
            pd,
            memory,
            mr,
            cq,
            qp,
        })
    }

    /// From INIT to RTS, connected to `remote`.
    pub(crate) fn connect(&self, remote: Endpoint, rts: RtsAttr) -> Result<()> {
        connect::<C>(self.qp.control(), &self.ctx, remote, rts)
    }

    /// Connects both ends: the one that is `first` speaks first and is ready last. Gives the other's memory.
    pub(crate) fn meet(&self, link: &mut Link, first: bool) -> Result<RemoteAddr> {
        let endpoint = self.qp.control().endpoint().to_bytes().to_vec();
        let mine = Hello {
            endpoint,
            addr: self.mr.addr(),
            rkey: self.mr.rkey(),
        };
        if first {
            link.send(&mine)?;
        }
        let theirs: Hello = link.recv()?;
        self.connect(decode(&theirs.endpoint)?, RtsAttr::default())?;
        if !first {
            link.send(&mine)?;
        }
        Ok(RemoteAddr {
            addr: theirs.addr,
            rkey: theirs.rkey,
        })
    }

    /// Waits for one completion, which must be a success.
    #[inline]
    pub(crate) fn reap(&mut self) -> Result<()> {
        reap::<C>(&mut self.cq)
    }
}

/// Posts a WRITE on `qp`.
#[inline]
pub(crate) fn write<C: Context>(
    qp: &mut C::Qp,
    wr_id: u64,
    payload: Payload<'_, C::Mr>,
    remote: RemoteAddr,
    flags: SendFlags,
) -> Result<()> {
    let op = SendOp::Write {
        payload,
        remote,
        imm: None,
    };
    Ok(qp.post_send(&SendWr { wr_id, op, flags })?)
}

/// Waits for one completion on `cq`, which must be a success.
#[inline]
pub(crate) fn reap<C: Context>(cq: &mut C::Cq) -> Result<()> {
    let mut polled = [Completion::EMPTY];
    if cq.poll(&mut polled) == 0 {
        wait_for_completion::<C>(cq, &mut polled)?;
    }
    if polled[0].status != WcStatus::SUCCESS {
        bail!("a write ended with {}", polled[0].status);
    }
    Ok(())
}

#[inline(never)]
fn wait_for_completion<C: Context>(cq: &mut C::Cq, polled: &mut [Completion; 1]) -> Result<()> {
    let mut spin = Spin::new();
    while cq.poll(polled) == 0 {
        spin.step().context("waiting for a completion")?;
    }
    Ok(())
}

/// From INIT to RTS, connected to `remote`.
pub(crate) fn connect<C: Context>(
    control: &C::Control,
    ctx: &C,
    remote: Endpoint,
    rts: RtsAttr,
) -> Result<()> {
    control.modify(&Modify::Rtr(RtrAttr {
        path_mtu: ctx.caps().max_mtu,
        ..RtrAttr::new(remote)
    }))?;
    Ok(control.modify(&Modify::Rts(rts))?)
}

/// From any state to INIT; the endpoint is a new one then.
pub(crate) fn restart<C: Context>(control: &C::Control, access: Access) -> Result<Endpoint> {
    if control.state()? != QpState::Reset {
        control.modify(&Modify::Reset)?;
    }
    control.modify(&Modify::Init(access))?;
    Ok(control.endpoint())
}

/// The endpoint that the other end sent.
pub(crate) fn decode(bytes: &[u8]) -> Result<Endpoint> {
    let bytes: Option<&[u8; Endpoint::BYTES]> = bytes.try_into().ok();
    let endpoint = bytes.and_then(Endpoint::from_bytes);
    ensure!(
        endpoint.is_some(),
        "the other end sent something that is no endpoint"
    );
    endpoint.context("an endpoint")
}
