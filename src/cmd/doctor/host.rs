//! Checks of the host: processors, clock, memory, and the system calls that the shared-memory backend needs.

use std::fs;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use mu_softrdma::shm;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use super::{Check, Wanted};
use crate::bench::host::{allowed_cpus, cpuinfo, text};
use crate::bench::stats::{Clock, Rounds};
use crate::cmd::told;

/// Threads of a replica that want a processor each: the replication plane and the background plane.
const THREADS: usize = 2;
/// Locked memory below which a replica with a small log does not fit.
const MEMLOCK_BYTES: u64 = 64 << 20;
/// A fence that takes longer makes every write slow.
const FENCE_NS_MAX: f64 = 50.0;
/// Oldest kernel on which everything works: write protection of memory files by userfaultfd.
const KERNEL: (u32, u32) = (5, 19);

/// The capability to lock memory beyond the limit, capabilities(7).
const CAP_IPC_LOCK: u32 = 14;

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";
const SHMEM_THP: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

pub(super) fn checks(wanted: &Wanted<'_>) -> Vec<Check> {
    vec![
        kernel(),
        processors(),
        governor(),
        smt(),
        tsc(),
        clock_source(),
        fence_cost(),
        memlock(),
        huge_pages(),
        transparent_huge_pages(),
        transparent_huge_memory_files(),
        memory_files(wanted),
        process_watch(wanted),
        write_protection(),
    ]
}

fn kernel() -> Check {
    let release = text("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= KERNEL {
        return Check::pass("kernel", release);
    }
    let (major, minor) = KERNEL;
    Check::warn(
        "kernel",
        format!("{release}, older than {major}.{minor}"),
        "a newer kernel: on this one a stopped writer of shared memory cannot be fenced",
    )
}

fn processors() -> Check {
    let cpus = allowed_cpus().map_or(1, |cpus| cpus.len());
    let found = format!("{cpus} for this process, a replica keeps {THREADS} threads busy");
    if cpus >= THREADS {
        return Check::pass("processors", found);
    }
    Check::warn(
        "processors",
        found,
        "more processors, or expect waiting threads to take turns",
    )
}

fn governor() -> Check {
    const NAME: &str = "CPU frequency";
    match text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") {
        None => Check::pass(NAME, "not scaled by this kernel"),
        Some(governor) if governor == "performance" => Check::pass(NAME, "governor performance"),
        Some(governor) => Check::warn(
            NAME,
            format!("governor {governor}"),
            "cpupower frequency-set -g performance",
        ),
    }
}

fn smt() -> Check {
    const NAME: &str = "SMT";
    match text("/sys/devices/system/cpu/smt/active").as_deref() {
        Some("1") => Check::warn(
            NAME,
            "on: two threads share a core",
            "pin the polling threads to different cores, or echo off > /sys/devices/system/cpu/smt/control",
        ),
        Some(_) => Check::pass(NAME, "off"),
        None => Check::pass(NAME, "not reported by this kernel"),
    }
}

fn tsc() -> Check {
    const NAME: &str = "time stamp counter";
    if !cfg!(target_arch = "x86_64") {
        return Check::pass(
            NAME,
            "not an x86 processor: its counter is constant by architecture",
        );
    }
    let flags = cpuinfo("flags").unwrap_or_default();
    let missing: Vec<&str> = ["constant_tsc", "nonstop_tsc"]
        .into_iter()
        .filter(|flag| !flags.split(' ').any(|f| f == *flag))
        .collect();
    if missing.is_empty() {
        return Check::pass(NAME, "invariant");
    }
    let found = format!("not known to be invariant: no {}", missing.join(", "));
    Check::warn(
        NAME,
        found,
        "timings fall back to the system's clock, which is slower to read",
    )
}

fn clock_source() -> Check {
    const NAME: &str = "clock source";
    match text("/sys/devices/system/clocksource/clocksource0/current_clocksource") {
        None => Check::pass(NAME, "not reported by this kernel"),
        Some(source) if ["tsc", "kvm-clock", "arch_sys_counter"].contains(&source.as_str()) => {
            Check::pass(NAME, source)
        }
        Some(source) => Check::warn(
            NAME,
            format!("{source}: reading the clock enters the kernel"),
            "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource, if it is available",
        ),
    }
}

/// A store, the fence that a gate needs, and a load: part of every write in software.
fn fence_cost() -> Check {
    const TURNS: u64 = 20_000;
    let (clock, word) = (Clock::new(), AtomicU64::new(0));
    let mut rounds = Rounds::default();
    for _ in 0..5 {
        let start = clock.now();
        for turn in 0..TURNS {
            word.store(turn, Ordering::Release);
            fence(Ordering::SeqCst);
            black_box(word.load(Ordering::Acquire));
        }
        rounds.add(clock.since(start), TURNS);
    }
    let found = format!("{} ns", rounds.best());
    if rounds.best() <= FENCE_NS_MAX {
        return Check::pass("memory fence", found);
    }
    Check::warn(
        "memory fence",
        found,
        "an emulated or overloaded processor: figures of software backends will be high",
    )
}

fn memlock() -> Check {
    const NAME: &str = "locked memory";
    if may_lock_any() {
        return Check::pass(NAME, "CAP_IPC_LOCK: no limit applies");
    }
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Err(errno) => Check::warn(NAME, format!("getrlimit: {errno}"), "allow getrlimit"),
        Ok((RLIM_INFINITY, _)) => Check::pass(NAME, "no limit"),
        Ok((limit, _)) if limit >= MEMLOCK_BYTES => {
            Check::pass(NAME, format!("limit {} MiB", limit >> 20))
        }
        Ok((limit, _)) => Check::warn(
            NAME,
            format!(
                "more than {} KiB stays unlocked, and RDMA devices refuse to register it",
                limit >> 10
            ),
            "ulimit -l unlimited, LimitMEMLOCK=infinity in a systemd unit, or --ulimit memlock=-1 for a container",
        ),
    }
}

/// Whether this process holds the capability that lifts the limit. The kernel asks for it in the first user namespace,
/// so a container that has a namespace of its own may show it and not have it.
fn may_lock_any() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    has_capability(&status, CAP_IPC_LOCK) && is_first_namespace(&users)
}

/// Looks at the effective capabilities in the text of `/proc/self/status`.
fn has_capability(status: &str, bit: u32) -> bool {
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .is_some_and(|mask| mask >> bit & 1 == 1)
}

/// The first user namespace maps all user numbers to themselves.
fn is_first_namespace(uid_map: &str) -> bool {
    uid_map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn huge_pages() -> Check {
    let free = fs::read_to_string("/proc/meminfo").ok().and_then(|info| {
        let line = info
            .lines()
            .find(|line| line.starts_with("HugePages_Free:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    match free {
        Some(free) if free > 0 => Check::pass("huge pages", format!("{free} free")),
        _ => Check::warn(
            "huge pages",
            "none free: ordinary pages are used",
            "sysctl vm.nr_hugepages=512 reserves 1 GiB (not needed for correctness)",
        ),
    }
}

fn transparent_huge_pages() -> Check {
    huge_by_itself("transparent huge pages", THP, "madvise")
}

fn transparent_huge_memory_files() -> Check {
    huge_by_itself("huge memory files", SHMEM_THP, "advise")
}

/// Whether the kernel makes huge pages by itself, as `path` says. `fix` is what has to be written there.
fn huge_by_itself(name: &'static str, path: &str, fix: &str) -> Check {
    let Some(modes) = text(path) else {
        return Check::pass(name, "not in this kernel");
    };
    let mode = modes.split(['[', ']']).nth(1).unwrap_or("unknown");
    match mode {
        "never" | "deny" => Check::warn(name, mode, format!("echo {fix} > {path}")),
        mode => Check::pass(name, mode),
    }
}

fn memory_files(wanted: &Wanted<'_>) -> Check {
    const NAME: &str = "memory files";
    match memfd_create(
        c"mu-doctor",
        MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING,
    ) {
        Ok(_) => Check::pass(NAME, "memfd_create works, with seals"),
        Err(errno) => {
            let fix =
                "allow memfd_create in the seccomp profile; without it there is no backend shm";
            Check::fail_if(wanted.shm(), NAME, format!("memfd_create: {errno}"), fix)
        }
    }
}

/// The shared-memory backend as a whole: its segments, its socket, and the descriptors by which processes watch
/// each other.
fn process_watch(wanted: &Wanted<'_>) -> Check {
    const NAME: &str = "backend shm";
    match crate::bench::backend::open_shm() {
        Ok(_) => Check::pass(NAME, "opens"),
        Err(error) => Check::fail_if(wanted.shm(), NAME, told(&error), "see the message"),
    }
}

fn write_protection() -> Check {
    const NAME: &str = "userfaultfd";
    match shm::can_fence() {
        Ok(()) => Check::pass(
            NAME,
            "write protection of memory files works: a stopped writer is fenced",
        ),
        Err(errno) => {
            let sysctl =
                text("/proc/sys/vm/unprivileged_userfaultfd").unwrap_or_else(|| "not there".into());
            Check::warn(
                NAME,
                format!(
                    "{errno} (vm.unprivileged_userfaultfd is {sysctl}): a stopped writer cannot be fenced"
                ),
                "a kernel from 5.19 with CONFIG_USERFAULTFD; allow userfaultfd in the seccomp profile. \
                 User-mode faults need no privilege",
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_a_bit_of_the_effective_mask() {
        let only = "Name:\tmu\nCapPrm:\t0000000000000000\nCapEff:\t0000000000004000\n";
        assert!(has_capability(only, CAP_IPC_LOCK));
        assert!(!has_capability(only, CAP_IPC_LOCK + 1));
        let none = "CapPrm:\t000001ffffffffff\nCapEff:\t0000000000000000\n";
        assert!(!has_capability(none, CAP_IPC_LOCK));
        for odd in ["", "CapEff:", "CapEff:\tmany"] {
            assert!(!has_capability(odd, CAP_IPC_LOCK), "{odd}");
        }
    }

    #[test]
    fn a_user_namespace_of_its_own_is_told_by_its_map() {
        assert!(is_first_namespace("         0          0 4294967295\n"));
        for own in ["0 1000 1\n", "0 100000 65536\n", ""] {
            assert!(!is_first_namespace(own), "{own}");
        }
    }
}
