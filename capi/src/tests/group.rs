//! Three replicas in this process over shared memory, and the program behind them: a counter.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::net::TcpListener;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::code::{MU_NOT_LEADER, MU_OK, MU_UNKNOWN, MuResult};
use crate::raw::calls_data::{mu_left, mu_read, mu_write};
use crate::raw::calls_open::{mu_close, mu_last_error, mu_open_text};
use crate::raw::calls_propose::{mu_propose, mu_step};
use crate::raw::calls_state::mu_get_leader;
use crate::raw::pointers::MuReply;
use crate::raw::types::*;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);
pub(super) const PATIENCE_US: i64 = 20_000_000;

/// What a counter does when it is asked to, besides counting.
pub(super) type Hook = Mutex<Option<Box<dyn FnMut(&MuCommand, MuSink) -> c_int + Send>>>;

/// The program's state.
#[derive(Default)]
pub(super) struct Counter {
    pub(super) sum: AtomicU64,
    pub(super) applied: Mutex<Vec<(u64, u64, u64, u32)>>,
    pub(super) roles: Mutex<Vec<MuRole>>,
    pub(super) fatal: Mutex<Vec<String>>,
    pub(super) loads: AtomicU64,
    pub(super) refuse_load: AtomicBool,
    pub(super) hook: Hook,
}

/// What `user` points to.
fn counter<'a>(user: *mut c_void) -> &'a Counter {
    // SAFETY: it came from a Counter that lives until its replica is closed.
    unsafe { &*user.cast::<Counter>() }
}

unsafe extern "C" fn apply(user: *mut c_void, command: *const MuCommand, sink: MuSink) -> c_int {
    // SAFETY: good until this returns.
    let command = unsafe { &*command };
    let this = counter(user);
    // SAFETY: as above; an empty command may have any pointer, and none is sent here.
    let bytes = unsafe { std::slice::from_raw_parts(command.data, command.len) };
    let sum = this.sum.load(Ordering::Relaxed) + u64::from(bytes[0]);
    this.sum.store(sum, Ordering::Relaxed);
    let entry = (
        command.index,
        command.client,
        command.sequence,
        command.flags,
    );
    this.applied.lock().expect("no panic").push(entry);
    let mut code = 0;
    if let Some(hook) = &mut *this.hook.lock().expect("no panic") {
        code = hook(command, sink);
    }
    let reply = sum.to_le_bytes();
    // SAFETY: the bytes are there.
    let written = unsafe { mu_write(sink, reply.as_ptr(), reply.len()) };
    assert_eq!(written, MU_OK);
    code
}

unsafe extern "C" fn save(user: *mut c_void, sink: MuSink) -> c_int {
    let sum = counter(user).sum.load(Ordering::Relaxed).to_le_bytes();
    for byte in sum {
        // SAFETY: the byte is there.
        assert_eq!(unsafe { mu_write(sink, &byte, 1) }, MU_OK);
    }
    0
}

unsafe extern "C" fn load(user: *mut c_void, source: MuSource) -> c_int {
    let this = counter(user);
    this.loads.fetch_add(1, Ordering::Relaxed);
    let (mut bytes, mut left, mut count) = ([0; 8], 0, 0);
    // SAFETY: the memory is there.
    unsafe {
        assert_eq!(mu_left(source, &mut left), MU_OK);
        assert_eq!(mu_read(source, bytes.as_mut_ptr(), 3, &mut count), MU_OK);
        assert_eq!(count, 3);
        assert_eq!(
            mu_read(source, bytes[3..].as_mut_ptr(), 5, &mut count),
            MU_OK
        );
    }
    assert_eq!((left, count), (8, 5));
    this.sum.store(u64::from_le_bytes(bytes), Ordering::Relaxed);
    this.refuse_load.swap(false, Ordering::Relaxed).into()
}

unsafe extern "C" fn digest(user: *mut c_void) -> u64 {
    counter(user).sum.load(Ordering::Relaxed)
}

unsafe extern "C" fn role(user: *mut c_void, role: *const MuRole) {
    // SAFETY: good until this returns.
    let role = unsafe { *role };
    counter(user).roles.lock().expect("no panic").push(role);
}

unsafe extern "C" fn fatal(user: *mut c_void, _: MuResult, text: *const c_char) {
    // SAFETY: a text, good until this returns.
    let text = unsafe { CStr::from_ptr(text) };
    let text = text.to_string_lossy().into_owned();
    counter(user).fatal.lock().expect("no panic").push(text);
}

pub(super) fn callbacks(counter: &Counter) -> MuCallbacks {
    MuCallbacks {
        size: size_of::<MuCallbacks>(),
        user: ptr::from_ref(counter).cast_mut().cast(),
        apply: Some(apply),
        save: Some(save),
        load: Some(load),
        digest: Some(digest),
        role: Some(role),
        fatal: Some(fatal),
    }
}

pub(super) fn last_error() -> String {
    // SAFETY: a text that this thread has until its next call.
    let text = unsafe { CStr::from_ptr(mu_last_error()) };
    text.to_string_lossy().into_owned()
}

/// A configuration for so many replicas on free ports, and the folder with its key.
pub(super) fn config(replicas: u8) -> (String, tempfile::TempDir) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut key = [0; 32];
    getrandom::fill(&mut key).expect("random bytes");
    let path = folder.path().join("cluster.key");
    let hex = data_encoding::HEXLOWER.encode(&key);
    std::fs::write(&path, format!("hex:{hex}")).expect("a file");
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&path, private).expect("its mode");
    let listeners: Vec<_> = (0..replicas)
        .map(|_| TcpListener::bind("127.0.0.1:0").expect("a port"))
        .collect();
    let mut text = String::from(
        "cluster = \"capi\"\npsk_file = \"cluster.key\"\nlog_bytes = 65536\ndetect_us = 50000\nheartbeat_us = 1000\n\
         completion_timeout_us = 500000\nreplicas = [\n",
    );
    for (id, listener) in listeners.iter().enumerate() {
        let (address, port) = (listener.local_addr().expect("an address"), id + 7000);
        text +=
            &format!("{{ id = {id}, control = \"{address}\", client = \"192.0.2.1:{port}\" }},\n");
    }
    text += "]\n";
    (text, folder)
}

pub(super) fn open(
    config: &(String, tempfile::TempDir),
    options: MuOptions,
    counter: &Counter,
) -> (MuResult, MuHandle) {
    let text = CString::new(config.0.as_str()).expect("no 0");
    let folder = CString::new(config.1.path().to_str().expect("UTF-8")).expect("no 0");
    let mut handle = 7;
    let callbacks = callbacks(counter);
    // SAFETY: all of it is there; the counter outlives its replica, as every test closes it.
    let code = unsafe {
        mu_open_text(
            text.as_ptr(),
            folder.as_ptr(),
            &options,
            &callbacks,
            &mut handle,
        )
    };
    (code, handle)
}

pub(super) fn options(mode: u32, id: u8, form: bool) -> MuOptions {
    MuOptions {
        size: size_of::<MuOptions>(),
        mode,
        id,
        form: form.into(),
    }
}

/// Replicas, closed when dropped.
pub(super) struct Group {
    pub(super) config: (String, tempfile::TempDir),
    pub(super) counters: Vec<Arc<Counter>>,
    pub(super) handles: Vec<MuHandle>,
}

impl Group {
    pub(super) fn start(replicas: u8, mode: u32) -> Self {
        let mut group = Self {
            config: config(replicas),
            counters: Vec::new(),
            handles: Vec::new(),
        };
        for id in 0..replicas {
            let counter = Arc::new(Counter::default());
            let (code, handle) = open(&group.config, options(mode, id, true), &counter);
            assert_eq!(code, MU_OK, "{}", last_error());
            group.counters.push(counter);
            group.handles.push(handle);
        }
        group
    }

    /// Turns every replica that is stepped, or waits a little.
    pub(super) fn turn(&self) {
        for handle in &self.handles {
            // SAFETY: no descriptor.
            unsafe { mu_step(*handle, 100, -1) };
        }
        std::thread::sleep(Duration::from_micros(100));
    }

    pub(super) fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let begin = Instant::now();
        while !holds() {
            assert!(begin.elapsed() < PATIENCE, "{what}: {}", self.told());
            self.turn();
        }
    }

    /// Until one can be missed: a replica that started late, beside others with a history, has no vote at first.
    pub(super) fn all_vote(&self) {
        let votes = |counter: &Arc<Counter>| {
            let roles = counter.roles.lock().expect("no panic");
            roles.last().is_some_and(|role| role.voter == 1)
        };
        self.until("all vote", || self.counters.iter().all(votes));
    }

    /// What every replica was told of its part.
    fn told(&self) -> String {
        let roles = |counter: &Arc<Counter>| counter.roles.lock().expect("no panic").clone();
        let roles: Vec<_> = self.counters.iter().map(roles).collect();
        format!("{roles:?}")
    }

    /// The replica that says that it leads.
    pub(super) fn leader(&self) -> usize {
        let mut found = None;
        self.until("a leader", || {
            found = (0..self.handles.len()).find(|id| leader_of(self.handles[*id]) == *id as u8);
            found.is_some()
        });
        found.expect("found")
    }

    /// Proposes as a client should.
    pub(super) fn add(&self, sequence: u64, byte: u8) -> u64 {
        let begin = Instant::now();
        loop {
            let leader = self.handles[self.leader()];
            match propose(leader, 9, sequence, &[byte], PATIENCE_US) {
                (MU_OK, reply) => return u64::from_le_bytes(reply.try_into().expect("a sum")),
                (MU_NOT_LEADER | MU_UNKNOWN, _) if begin.elapsed() < PATIENCE => self.turn(),
                (code, _) => panic!("{code}: {}", last_error()),
            }
        }
    }

    pub(super) fn sums(&self) -> Vec<u64> {
        let sum = |counter: &Arc<Counter>| counter.sum.load(Ordering::Relaxed);
        self.counters.iter().map(sum).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for handle in &self.handles {
            mu_close(*handle);
        }
    }
}

pub(super) fn leader_of(handle: MuHandle) -> u8 {
    let mut leader = MU_NO_LEADER;
    // SAFETY: the memory is there.
    unsafe { mu_get_leader(handle, &mut leader) };
    leader
}

pub(super) fn propose(
    handle: MuHandle,
    client: u64,
    sequence: u64,
    command: &[u8],
    timeout_us: i64,
) -> (MuResult, Vec<u8>) {
    let mut buffer = vec![0; 64];
    let mut reply = MuReply {
        data: buffer.as_mut_ptr(),
        capacity: buffer.len(),
        len: 0,
        index: 0,
    };
    let (data, len) = (command.as_ptr(), command.len());
    // SAFETY: command and buffer are there.
    let code = unsafe { mu_propose(handle, client, sequence, data, len, timeout_us, &mut reply) };
    buffer.truncate(reply.len);
    (code, buffer)
}
