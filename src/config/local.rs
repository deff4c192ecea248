//! The files of a cluster whose members all run on this host: `cluster.toml`, and `cluster.key` beside it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::iter;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports that the kernel gives to connections, which could otherwise take a dead replica's.
const FIRST_PORT: u16 = 20_000;
const LAST_PORT: u16 = 30_000;
const KEY_BYTES: usize = 32;

/// Writes the files into a folder that has none, with a fresh key, and gives the path of the configuration. `settings`
/// are further lines of it. Clients' addresses begin at `first` and go up by the port, the control addresses follow;
/// without it they are free ports at a loopback address that is made from this process's number, so that two clusters
/// at the same time do not meet.
///
/// # Errors
/// What the operating system says; the files are there already; there are too few ports.
pub fn write_local(
    dir: &Path,
    replicas: u8,
    settings: &str,
    first: Option<SocketAddr>,
) -> io::Result<PathBuf> {
    let addresses = match first {
        Some(first) => following(first, replicas)?,
        None => free_ports(usize::from(replicas) * 2)?,
    };
    let (clients, controls) = addresses.split_at(replicas.into());
    let mut key = [0; KEY_BYTES];
    getrandom::fill(&mut key).map_err(io::Error::other)?;
    let hex = data_encoding::HEXLOWER.encode(&key);
    write_new(&dir.join("cluster.key"), &format!("hex:{hex}"))?;
    let mut text = String::from("cluster = \"local\"\npsk_file = \"cluster.key\"\n");
    text += settings;
    text += "replicas = [\n";
    for (id, (control, client)) in controls.iter().zip(clients).enumerate() {
        text += &format!("    {{ id = {id}, control = \"{control}\", client = \"{client}\" }},\n");
    }
    text += "]\n";
    let path = dir.join("cluster.toml");
    write_new(&path, &text)?;
    Ok(path)
}

/// A private file that was not there.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    let written = options
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        // A half-written one would be in the way of the next attempt.
        if error.kind() != io::ErrorKind::AlreadyExists {
            let _ = fs::remove_file(path);
        }
        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
    })
}

fn following(first: SocketAddr, replicas: u8) -> io::Result<Vec<SocketAddr>> {
    let count = u16::from(replicas) * 2;
    let ports = first.port()..=first.port().saturating_add(count - 1);
    if ports.len() < count.into() {
        return Err(io::Error::other(format!(
            "no {count} ports from {first} on"
        )));
    }
    Ok(ports
        .map(|port| SocketAddr::new(first.ip(), port))
        .collect())
}

/// Addresses at which nobody listens, on a loopback address of this process. No two calls of a process get the same:
/// whoever asked first may not listen yet.
fn free_ports(count: usize) -> io::Result<Vec<SocketAddr>> {
    static NEXT: AtomicU16 = AtomicU16::new(FIRST_PORT);
    // A process number has 22 bits.
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let host = Ipv4Addr::new(127, 1 + (high & 0x3f), middle, low);
    let free = |address: &SocketAddr| TcpListener::bind(address).is_ok();
    let later = |port: u16| (port < LAST_PORT).then_some(port + 1);
    let next = || {
        NEXT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, later)
            .ok()
    };
    let all = iter::from_fn(next).map(|port| SocketAddr::from((host, port)));
    let found: Vec<SocketAddr> = all.filter(free).take(count).collect();
    match found.len() == count {
        true => Ok(found),
        false => Err(io::Error::other(format!(
            "fewer than {count} free ports at {host}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn what_is_written_is_a_configuration_and_is_written_once() {
        let dir = tempfile::tempdir().expect("a folder");
        let first = "127.0.0.1:7000".parse().ok();
        let path = write_local(dir.path(), 3, "window = 8\n", first).expect("an empty folder");
        let config = Config::from_file(&path).expect("sound");
        let clients: Vec<_> = config.members().iter().filter_map(|m| m.client).collect();
        assert_eq!(clients[2], "127.0.0.1:7002".parse().expect("an address"));
        assert_eq!(config.members()[0].control, "127.0.0.1:7003".parse().ok());
        assert_eq!(config.window(), 8);
        let again = write_local(dir.path(), 3, "", first).expect_err("it is there");
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        let other = tempfile::tempdir().expect("a folder");
        let late = "127.0.0.1:65533".parse().ok();
        write_local(other.path(), 3, "", late).expect_err("too few ports");
        let free = write_local(other.path(), 3, "", None).expect("free ports");
        Config::from_file(free).expect("sound");
    }
}
