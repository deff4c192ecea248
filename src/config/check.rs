//! The checks that every configuration passes, wherever it came from.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::keys::{self, Int};
use super::{Backend, CLUSTER_CHARS_MAX, Config, ID_MAX, KeyError, MEMBERS_MAX, Member};

type Checked = Result<(), KeyError>;

pub(super) fn check(config: &Config) -> Checked {
    check_cluster(&config.cluster)?;
    check_members(config)?;
    check_key(config)?;
    check_ranges(config)?;
    check_relations(config)?;
    check_nic(config)
}

pub(super) fn no_such_member(members: &[Member], id: u8) -> KeyError {
    let ids: Vec<String> = members.iter().map(|m| m.id.to_string()).collect();
    let expected = format!("no member has id {id}; expected one of {}", ids.join(", "));
    KeyError::new("replicas", None, expected)
}

fn check_cluster(name: &str) -> Checked {
    let chars = name.chars().count();
    if (1..=CLUSTER_CHARS_MAX).contains(&chars) && !name.chars().any(char::is_control) {
        return Ok(());
    }
    let expected = format!("expected a name of 1 to {CLUSTER_CHARS_MAX} printable characters");
    Err(KeyError::new("cluster", format!("{name:?}"), expected))
}

fn check_members(config: &Config) -> Checked {
    let members = &config.members;
    if !(1..=MEMBERS_MAX).contains(&members.len()) {
        let expected = format!(
            "{} members; expected 1 to {MEMBERS_MAX}, each {{ id, control }}",
            members.len()
        );
        return Err(KeyError::new("replicas", None, expected));
    }
    let mut ids = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for (at, member) in members.iter().enumerate() {
        let key = |name: &str| format!("replicas[{at}].{name}");
        let id = member.id;
        let rule = format!("ids are 0 to {ID_MAX} and unique");
        if id > ID_MAX {
            return Err(KeyError::new(key("id"), id.to_string(), rule));
        }
        if let Some(first) = ids.insert(id, at) {
            let expected = format!("already used by replicas[{first}]; {rule}");
            return Err(KeyError::new(key("id"), id.to_string(), expected));
        }
        if member.control.is_none() && config.settings.backend != Backend::Inproc {
            let expected = "missing; expected the IP address and port for the other members";
            return Err(KeyError::new(key("control"), None, expected));
        }
        for (name, address) in [("control", member.control), ("client", member.client)] {
            if let Some(address) = address {
                check_address(&key(name), address, &mut addresses)?;
            }
        }
        for (name, cpu) in [
            ("replication_cpu", member.replication_cpu),
            ("background_cpu", member.background_cpu),
        ] {
            check_int(&key(name), cpu.unwrap_or(0).into(), &keys::CPU)?;
        }
    }
    Ok(())
}

fn check_address(
    key: &str,
    address: SocketAddr,
    taken: &mut BTreeMap<SocketAddr, String>,
) -> Checked {
    let wrong = |what: String| Err(KeyError::new(key, format!("\"{address}\""), what));
    if address.port() == 0 {
        return wrong("port 0; expected the port that others connect to, 1 to 65535".into());
    }
    if address.ip().is_unspecified() || address.ip().is_multicast() {
        return wrong("expected the address of one host, as others reach it".into());
    }
    match taken.insert(address, key.into()) {
        Some(first) => wrong(format!(
            "already used by {first}; expected addresses to be unique"
        )),
        None => Ok(()),
    }
}

fn check_key(config: &Config) -> Checked {
    if config.psk.is_none() && config.settings.backend != Backend::Inproc {
        let expected =
            "missing; expected psk_file, a file with the key that all members share, or psk";
        return Err(KeyError::new("psk_file", None, expected));
    }
    Ok(())
}

fn check_int(key: &str, value: u64, int: &Int) -> Checked {
    if int.holds(value) {
        return Ok(());
    }
    Err(KeyError::new(key, value.to_string(), int.expected()))
}

fn check_ranges(config: &Config) -> Checked {
    let s = &config.settings;
    for (int, value) in [
        (&keys::LOG_BYTES, s.log_bytes),
        (&keys::MAX_COMMAND_BYTES, s.max_command_bytes),
        (&keys::WINDOW, s.window),
        (&keys::HEARTBEAT_US, s.heartbeat_us),
        (&keys::DETECT_US, s.detect_us),
        (&keys::COMPLETION_TIMEOUT_US, s.completion_timeout_us),
        (&keys::IDLE_FLUSH_US, s.idle_flush_us),
        (&keys::CUT_OFF_US, s.cut_off_us),
        (&keys::DIGEST_INTERVAL, s.digest_interval),
        (&keys::SESSIONS, s.sessions),
        (&keys::SNAPSHOT_MAX_BYTES, s.snapshot_max_bytes),
    ] {
        check_int(int.key, value, int)?;
    }
    Ok(())
}

fn check_relations(config: &Config) -> Checked {
    let s = &config.settings;
    let command_max = s.log_bytes / keys::LOG_PER_COMMAND;
    if s.max_command_bytes > command_max {
        let expected = format!(
            "does not fit the log; expected at most {command_max}, log_bytes / {}",
            keys::LOG_PER_COMMAND
        );
        let value = s.max_command_bytes.to_string();
        return Err(KeyError::new("max_command_bytes", value, expected));
    }
    let detect_min = s.heartbeat_us * keys::HEARTBEATS_PER_DETECT;
    if s.detect_us < detect_min {
        let expected = format!(
            "expected at least {detect_min}, heartbeat_us * {}, or every late heartbeat is a failure",
            keys::HEARTBEATS_PER_DETECT
        );
        let value = s.detect_us.to_string();
        return Err(KeyError::new("detect_us", value, expected));
    }
    Ok(())
}

fn check_nic(config: &Config) -> Checked {
    let members = config.members.iter().enumerate();
    let all = members
        .map(|(at, member)| (format!("replicas[{at}]."), &member.nic))
        .chain([(String::new(), &config.settings.nic)]);
    for (prefix, nic) in all {
        let device = nic.device.as_ref().map(|d| ("device", format!("{d:?}")));
        let gid = nic.gid_index.map(|index| ("gid_index", index.to_string()));
        for (name, value) in [device, gid].into_iter().flatten() {
            if config.settings.backend != Backend::Nic {
                let expected = "expected only with backend = \"nic\"";
                return Err(KeyError::new(format!("{prefix}{name}"), value, expected));
            }
        }
        if nic.device.as_deref().is_some_and(|d| !is_device_name(d)) {
            let value = format!("{:?}", nic.device.as_deref().unwrap_or_default());
            let expected = "expected the name of an RDMA device, as `mu devices` prints it";
            return Err(KeyError::new(format!("{prefix}device"), value, expected));
        }
    }
    Ok(())
}

/// Names of devices have at most 63 characters and are names of files in sysfs.
fn is_device_name(name: &str) -> bool {
    (1..64).contains(&name.len()) && name.chars().all(|c| c.is_ascii_graphic() && c != '/')
}
