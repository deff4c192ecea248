//! The background thread: connections, heartbeats and permissions, and what is published of the replica.

use std::io;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use mu_protocol::background::Background;
use mu_protocol::zoo::Sound;
use mu_verbs::Context;

use super::common::{BackgroundView, Common};
use super::control::{Carrier, ControlPlane};
use super::error::{Halted, StartError};
use super::options::{ThreadOptions, pin};
use super::pace::{Pacer, Rest};
use super::wake::sleep_precisely;

/// Between two publications of the picture.
pub(super) const REPORT_NS: u64 = 50_000_000;

/// The running thread. Ends with [`end`](Self::end) or when dropped.
#[derive(Debug)]
pub(crate) struct BackgroundThread {
    common: Arc<Common>,
    thread: Option<JoinHandle<()>>,
}

impl BackgroundThread {
    pub(crate) fn start<C: Context>(
        engine: Background<C, Sound>,
        plane: impl ControlPlane,
        options: ThreadOptions,
        common: Arc<Common>,
    ) -> Result<Self, StartError> {
        let body = {
            let common = Arc::clone(&common);
            move || {
                common.guarded("background", || {
                    if let Err(error) = pin(options.cpu) {
                        tracing::warn!(%error, "not pinned");
                    }
                    sleep_precisely();
                    run(engine, Carrier::new(plane), options, &common);
                });
            }
        };
        let thread = spawn(format!("mu-bg-{}", common.id), body)?;
        Ok(Self {
            common,
            thread: Some(thread),
        })
    }

    /// Ends the thread and waits for it.
    pub(crate) fn end(&mut self, why: Halted) {
        self.common.end(why);
        if let Some(thread) = self.thread.take() {
            // A panic of it was caught and said inside.
            let _ = thread.join();
        }
    }
}

impl Drop for BackgroundThread {
    fn drop(&mut self) {
        // A panic of the thread that replicates gets here first.
        self.end(match std::thread::panicking() {
            true => Halted::Panicked,
            false => Halted::Asked,
        });
    }
}

pub(crate) fn spawn(
    name: String,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, StartError> {
    let what = format!("starting the thread {name}");
    let spawned = Builder::new().name(name).spawn(body);
    spawned.map_err(|source: io::Error| StartError::System { what, source })
}

fn run<C: Context>(
    mut engine: Background<C, Sound>,
    mut carrier: Carrier<impl ControlPlane>,
    options: ThreadOptions,
    common: &Common,
) {
    let mut now_ns = common.clock.now_ns();
    let mut pacer = Pacer::new(options.policy, now_ns);
    let mut report_ns = now_ns;
    let (mut standing, mut leading) = (None, None);
    while common.ending().is_none() {
        let received = carrier.receive(&mut engine, now_ns);
        if carrier.is_superseded() {
            common.end(Halted::Superseded);
            return;
        }
        let pace = engine.poll(now_ns);
        carrier.transmit(&mut engine);
        if pace.worked {
            let stands = engine.view().standing;
            if std::mem::replace(&mut standing, stands) != stands {
                if let Some(epoch) = stands {
                    common.note("stands", epoch);
                }
                // The replication engine has to begin or end a leadership, and may be asleep.
                common.waker.wake();
            }
        }
        let leads = engine.leading_peer();
        if std::mem::replace(&mut leading, leads) != leads {
            // Whoever waits for a leader is to hear of it, and the thread that serves them may be asleep.
            common.waker.wake();
        }
        now_ns = common.clock.now_ns();
        if now_ns >= report_ns {
            report_ns = now_ns + REPORT_NS;
            report(&engine, &mut carrier, common);
        }
        let worked = pace.worked || received;
        match pacer.rest(now_ns, worked, false, pace.next_ns.min(report_ns)) {
            Rest::Spin => std::hint::spin_loop(),
            Rest::Yield => std::thread::yield_now(),
            Rest::Sleep { ns } => {
                let ending = || common.ending().is_some();
                common.background_waker.sleep(ns, None, ending);
                now_ns = common.clock.now_ns();
            }
        }
    }
}

fn report<C: Context>(
    engine: &Background<C, Sound>,
    carrier: &mut Carrier<impl ControlPlane>,
    common: &Common,
) {
    common.publish_background(BackgroundView {
        view: engine.view(),
        counters: engine.counters(),
        refused_connections: carrier.plane.refused(),
    });
    let status = common.status(&common.view());
    let json = serde_json::to_vec(&status).expect("a status is JSON");
    carrier.plane.set_status(&json);
}
