//! The NIC backend over libraries that fail in ways the fake provider does not: single functions of its table are
//! replaced. Unsafe code here counts doorbells and breaks provider functions in a context's ops table.

mod objects;
mod open;
mod path;

use std::ffi::c_int;
use std::sync::Mutex;

use mu_sys::Lib;
use mu_sys::fake::{self, FakeOptions};

use super::{Nic, NicCq, NicOptions, NicPd, NicQp};
use crate::{
    Access, Context, Error, Modify, Payload, QpCap, QpControl, QueuePair, RemoteAddr, RtrAttr,
    RtsAttr, SendFlags, SendOp, SendWr, Wr,
};

/// The changed libraries, which live for ever as real ones do.
static LIBS: Mutex<Vec<&'static Lib>> = Mutex::new(Vec::new());

fn real() -> &'static Lib {
    fake::lib(FakeOptions::default())
}

/// The fake library with some functions replaced.
fn broken(change: impl FnOnce(&mut Lib)) -> &'static Lib {
    let mut lib = *real();
    change(&mut lib);
    let lib: &'static Lib = Box::leak(Box::new(lib));
    LIBS.lock().unwrap().push(lib);
    lib
}

fn set_errno(errno: c_int) {
    // SAFETY: this thread's own errno.
    unsafe { *libc::__errno_location() = errno };
}

fn open(lib: &'static Lib) -> Nic {
    Nic::open_with(lib, "fake0", &NicOptions::default()).unwrap()
}

fn open_error(lib: &'static Lib) -> Error {
    Nic::open_with(lib, "fake0", &NicOptions::default())
        .map(drop)
        .unwrap_err()
}

/// A queue pair connected with itself, in RTS, and the queue of its completions.
fn loopback(nic: &Nic, pd: &NicPd) -> (NicCq, NicQp) {
    let cq = nic.create_cq(256).unwrap();
    let qp = nic.create_qp(pd, &cq, &cq, &QpCap::default()).unwrap();
    let control = qp.control();
    control.modify(&Modify::Init(Access::LOG)).unwrap();
    control
        .modify(&Modify::Rtr(RtrAttr::new(control.endpoint())))
        .unwrap();
    control.modify(&Modify::Rts(RtsAttr::default())).unwrap();
    (cq, qp)
}

/// A write of 8 bytes.
fn inline(remote: RemoteAddr) -> Wr<'static, Nic> {
    let op = SendOp::Write {
        payload: Payload::Inline(b"12345678"),
        remote,
        imm: None,
    };
    SendWr {
        wr_id: 0,
        op,
        flags: SendFlags::SIGNALED,
    }
}
