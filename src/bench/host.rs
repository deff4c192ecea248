//! Facts of the host that belong to every figure, and where threads run.

use std::fs;

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;
use serde::Serialize;

use crate::bench::spin;
use crate::cmd::misuse;

/// What a figure was taken on.
#[derive(Debug, Serialize)]
pub(crate) struct Host {
    /// The commit, if the build or the environment names it in `MU_COMMIT`.
    pub(crate) commit: Option<String>,
    pub(crate) cpu: String,
    pub(crate) cpus: usize,
    pub(crate) kernel: String,
    /// Processors of the near and the far end, if they were pinned.
    pub(crate) pinning: Vec<usize>,
    /// Whether waiting spins, or yields since there is but one processor.
    pub(crate) waiting: &'static str,
}

impl Host {
    pub(crate) fn new(pinning: &[usize]) -> Self {
        let commit = option_env!("MU_COMMIT")
            .map(str::to_owned)
            .or_else(|| std::env::var("MU_COMMIT").ok());
        Self {
            commit,
            cpu: cpuinfo("model name").unwrap_or_else(|| "unknown".into()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: text("/proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown".into()),
            pinning: pinning.to_vec(),
            waiting: if spin::is_alone() { "yield" } else { "spin" },
        }
    }
}

/// The first value of a field of `/proc/cpuinfo`.
pub(crate) fn cpuinfo(field: &str) -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = info.lines().find(|line| {
        line.split(':')
            .next()
            .is_some_and(|name| name.trim() == field)
    })?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

/// A small file, trimmed.
pub(crate) fn text(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

/// Bytes of memory that can be had without swapping, if the kernel says so.
pub(crate) fn available_memory() -> Option<u64> {
    let info = fs::read_to_string("/proc/meminfo").ok()?;
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The processors this process may run on.
pub(crate) fn allowed_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("sched_getaffinity")?;
    Ok((0..CpuSet::count())
        .filter(|&cpu| set.is_set(cpu).unwrap_or(false))
        .collect())
}

/// Checks the processors of `--pin`.
pub(crate) fn check_pins(pins: &[usize]) -> Result<()> {
    let allowed = allowed_cpus()?;
    match pins.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(cpu) => Err(misuse(format!(
            "--pin: no processor {cpu}; this process may use {allowed:?}"
        ))),
        None if pins.len() > 2 => Err(misuse(format!(
            "--pin takes one processor for each end, two at most; {} given",
            pins.len()
        ))),
        None => Ok(()),
    }
}

/// Keeps the calling thread on `cpu`, if any is given.
pub(crate) fn pin(cpu: Option<usize>) -> Result<()> {
    match cpu {
        Some(cpu) => keep_to(Pid::from_raw(0), &[cpu]),
        None => Ok(()),
    }
}

/// Keeps a thread, and those that it starts from now on, to these processors. 0 is the calling one.
pub(crate) fn keep_to(thread: Pid, cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for &cpu in cpus {
        set.set(cpu).with_context(|| format!("processor {cpu}"))?;
    }
    sched_setaffinity(thread, &set).with_context(|| format!("pinning to processor {cpus:?}"))
}
