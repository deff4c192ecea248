//! Which descriptor is what: the append-only file, a client, or something else.
//!
//! One atomic byte a descriptor, since hooks run on any thread, in forked children and in signal handlers. A number is
//! forgotten before it is closed: taken for the append-only file once it is another file's, that file would be lost.

use std::ffi::OsStr;
use std::fs;
use std::os::raw::c_int;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU8, Ordering};

/// What a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing that concerns this node.
    Other,
    /// The incremental append-only file: what stands for the log.
    Log,
    /// The connection of a client.
    Client,
}

/// Descriptors beyond are taken for clients, of which nothing is believed.
pub(crate) const DESCRIPTORS_MAX: usize = 1 << 17;

static KINDS: [AtomicU8; DESCRIPTORS_MAX] = [const { AtomicU8::new(0) }; DESCRIPTORS_MAX];

fn slot(descriptor: c_int) -> Option<&'static AtomicU8> {
    KINDS.get(usize::try_from(descriptor).ok()?)
}

#[inline]
pub(crate) fn get(descriptor: c_int) -> Kind {
    let Some(slot) = slot(descriptor) else {
        return Kind::Client;
    };
    match slot.load(Ordering::Relaxed) {
        1 => Kind::Log,
        2 => Kind::Client,
        _ => Kind::Other,
    }
}

pub(crate) fn set(descriptor: c_int, kind: Kind) {
    match slot(descriptor) {
        Some(slot) => slot.store(kind as u8, Ordering::Relaxed),
        None if kind == Kind::Log => {
            crate::node::end("the append-only file has too high a descriptor")
        }
        None => {}
    }
}

/// What a file is, by its name. Redis 7 writes commands to `NAME.N.incr.aof`, and to `temp-NAME.incr` while it makes
/// the file before it.
pub(crate) fn kind_of(path: &[u8]) -> Kind {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or(path);
    let incremental = name.ends_with(b".incr.aof");
    let temporary = name.starts_with(b"temp-") && name.ends_with(b".incr");
    match incremental || temporary {
        true => Kind::Log,
        false => Kind::Other,
    }
}

/// A file has a new name: whichever descriptors are open on it are what the name says.
pub(crate) fn renamed(to: &[u8]) {
    if kind_of(to) != Kind::Log {
        return;
    }
    let Ok(file) = fs::canonicalize(Path::new(OsStr::from_bytes(to))) else {
        return;
    };
    let Ok(listed) = fs::read_dir("/proc/self/fd") else {
        return;
    };
    for entry in listed.flatten() {
        let number = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok());
        if let Some(number) = number
            && fs::read_link(entry.path()).is_ok_and(|target| target == file)
        {
            set(number, Kind::Log);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn the_names_of_the_append_only_file() {
        for name in [
            "appendonlydir/appendonly.aof.1.incr.aof",
            "appendonlydir/temp-appendonly.aof.incr",
        ] {
            assert_eq!(kind_of(name.as_bytes()), Kind::Log, "{name}");
        }
        for name in [
            "a/appendonly.aof.1.base.rdb",
            "a/appendonly.aof.manifest",
            "a/b.incr.aof/c",
            "dump.rdb",
            "",
        ] {
            assert_eq!(kind_of(name.as_bytes()), Kind::Other, "{name}");
        }
    }

    #[test]
    fn a_file_that_gets_the_name_is_known_and_a_number_that_is_used_again_is_not() {
        let dir = std::env::temp_dir().join(format!("mu-redis-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a folder");
        let (from, to) = (dir.join("new"), dir.join("x.aof.2.incr.aof"));
        let file = fs::File::create(&from).expect("a file");
        fs::rename(&from, &to).expect("renamed");
        renamed(to.as_os_str().as_bytes());
        assert_eq!(get(file.as_raw_fd()), Kind::Log);
        set(file.as_raw_fd(), Kind::Other);
        assert_eq!(get(file.as_raw_fd()), Kind::Other);
        fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn numbers_out_of_range_are_not_believed() {
        for number in [-1, DESCRIPTORS_MAX as i32, i32::MAX] {
            set(number, Kind::Other);
            assert_eq!(get(number), Kind::Client);
        }
    }
}
