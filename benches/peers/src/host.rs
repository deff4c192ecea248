//! What the figures were taken on, and where the measuring thread runs.

use std::fs;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

/// Facts of the host.
#[derive(Debug, Serialize)]
pub struct Host {
    pub cpu: String,
    pub cpus: usize,
    pub kernel: String,
}

impl Host {
    pub fn new() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let info = text("/proc/cpuinfo");
        let model = info
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let kernel = text("/proc/sys/kernel/osrelease");
        Self {
            cpu: model.map_or("unknown", |(_, name)| name.trim()).to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: kernel.trim().to_owned(),
        }
    }
}

/// Keeps the calling thread, and the threads that it will start, on one processor.
pub fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)
        .with_context(|| format!("--pin: no processor {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("--pin: processor {cpu}"))
}
