//! From the text of a `cluster.toml` to a configuration.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use toml::de::DeTable;
use zeroize::Zeroizing;

use super::keys::{self, Int};
use super::psk::refuse_if_shared;
use super::table::{Source, Table};
use super::{
    Backend, Builder, Checksum, Config, ConfigError, KeyError, Member, NicPort, Poll, Psk, Settings,
};

/// Most bytes of a `cluster.toml`.
const FILE_BYTES_MAX: u64 = 64 << 10;

const REPLICAS: &str = "expected 1 to 9 members, each { id, control }";

pub(super) fn read(path: &Path) -> Result<Config, ConfigError> {
    let name = path.display().to_string();
    let unreadable = |reason: String| ConfigError::Unreadable {
        file: name.clone(),
        reason,
    };
    let file = File::open(path).map_err(|error| unreadable(format!("cannot open: {error}")))?;
    let mut text = Zeroizing::new(String::new());
    (&file)
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| unreadable(format!("cannot read: {error}")))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(unreadable(format!(
            "more than {FILE_BYTES_MAX} bytes; expected a cluster.toml"
        )));
    }
    let folder = path.parent().unwrap_or(Path::new(""));
    parse_checked(&text, &name, folder, &|| refuse_if_shared(&file, path))
}

pub(super) fn parse(text: &str, name: &str, folder: &Path) -> Result<Config, ConfigError> {
    parse_checked(text, name, folder, &|| Ok(()))
}

/// Whether a key may stand in the file itself.
type MayHoldKey<'a> = &'a dyn Fn() -> Result<(), String>;

fn parse_checked(
    text: &str,
    name: &str,
    folder: &Path,
    may_hold_key: MayHoldKey<'_>,
) -> Result<Config, ConfigError> {
    let source = Source::new(name, text);
    // The message alone: the error's own text quotes the line, and the key may stand there.
    let root = DeTable::parse(text).map_err(|error| ConfigError::Syntax {
        place: source.place(error.span().map(|span| span.start)),
        message: error.message().into(),
    })?;
    let config = read_root(&source, root.get_ref(), folder, may_hold_key);
    config.map_err(|error| source.locate(error))
}

fn read_root(
    source: &Source<'_>,
    root: &DeTable<'_>,
    folder: &Path,
    may_hold_key: MayHoldKey<'_>,
) -> Result<Config, KeyError> {
    let top = Table::new(source, String::new(), root, keys::TOP)?;
    let named = "expected a name of 1 to 64 printable characters";
    let cluster = top.text("cluster", named)?;
    let cluster = cluster.ok_or_else(|| top.missing("cluster", named))?;
    let config = Config {
        cluster: cluster.into(),
        members: read_members(&top)?,
        psk: read_psk(&top, folder, may_hold_key)?,
        settings: read_settings(&top)?,
    };
    Builder(config).checked()
}

fn read_members(top: &Table<'_, '_>) -> Result<Vec<Member>, KeyError> {
    let mut members = Vec::new();
    for table in top.tables("replicas", keys::REPLICA, REPLICAS)? {
        let id = table.small("id", &keys::ID)?;
        let control = "expected the IP address and port for the other members";
        members.push(Member {
            id: id.ok_or_else(|| table.missing("id", &keys::ID.expected()))?,
            control: Some(
                table
                    .address("control")?
                    .ok_or_else(|| table.missing("control", control))?,
            ),
            client: table.address("client")?,
            replication_cpu: table.small("replication_cpu", &keys::CPU)?,
            background_cpu: table.small("background_cpu", &keys::CPU)?,
            nic: read_nic(&table)?,
        });
    }
    Ok(members)
}

fn read_nic(table: &Table<'_, '_>) -> Result<NicPort, KeyError> {
    let device = table.text("device", "expected the name of an RDMA device")?;
    Ok(NicPort {
        device: device.map(Into::into),
        gid_index: table.small("gid_index", &keys::GID_INDEX)?,
    })
}

/// Errors about the key never show its value.
fn read_psk(
    top: &Table<'_, '_>,
    folder: &Path,
    may_hold_key: MayHoldKey<'_>,
) -> Result<Option<Psk>, KeyError> {
    let wrong = |expected: String| KeyError::new("psk", None, expected);
    if top.has("psk") && top.has("psk_file") {
        return Err(wrong(
            "expected either psk or psk_file, and both are there".into(),
        ));
    }
    if top.has("psk") {
        let text = top.text("psk", "").ok().flatten();
        let text = text.ok_or_else(|| {
            wrong("expected a text: \"hex:...\", \"base64:...\" or at least 16 bytes".into())
        })?;
        may_hold_key().map_err(wrong)?;
        return Psk::from_text(text.as_bytes()).map(Some).map_err(wrong);
    }
    let Some(path) = top.text("psk_file", "expected the path of a file with the key")? else {
        return Ok(None);
    };
    let psk = Psk::from_file(&folder.join(path));
    psk.map(Some).map_err(|why| top.wrong("psk_file", why))
}

fn read_settings(top: &Table<'_, '_>) -> Result<Settings, KeyError> {
    let default = Settings::default();
    let int = |int: &Int| top.int(int.key, int).map(|v| v.unwrap_or(int.default));
    let polls = [
        ("spin", Poll::Spin),
        ("adaptive", Poll::Adaptive),
        ("event", Poll::Event),
    ];
    let checksums = [("auto", Checksum::Auto), ("always", Checksum::Always)];
    let poll = |name| top.choice(name, &polls);
    Ok(Settings {
        nic: read_nic(top)?,
        backend: read_backend(top)?.unwrap_or(default.backend),
        log_bytes: int(&keys::LOG_BYTES)?,
        max_command_bytes: int(&keys::MAX_COMMAND_BYTES)?,
        window: int(&keys::WINDOW)?,
        heartbeat_us: int(&keys::HEARTBEAT_US)?,
        detect_us: int(&keys::DETECT_US)?,
        completion_timeout_us: int(&keys::COMPLETION_TIMEOUT_US)?,
        idle_flush_us: int(&keys::IDLE_FLUSH_US)?,
        cut_off_us: int(&keys::CUT_OFF_US)?,
        digest_interval: int(&keys::DIGEST_INTERVAL)?,
        sessions: int(&keys::SESSIONS)?,
        snapshot_max_bytes: int(&keys::SNAPSHOT_MAX_BYTES)?,
        checksum: top
            .choice("checksum", &checksums)?
            .unwrap_or(default.checksum),
        replication_poll: poll("replication_poll")?.unwrap_or(default.replication_poll),
        background_poll: poll("background_poll")?.unwrap_or(default.background_poll),
    })
}

fn read_backend(top: &Table<'_, '_>) -> Result<Option<Backend>, KeyError> {
    if top
        .text("backend", "")
        .is_ok_and(|text| text == Some("inproc"))
    {
        let expected =
            "a file is for processes, and these are threads of one; expected \"shm\" or \"nic\"";
        return Err(top.wrong("backend", expected));
    }
    top.choice("backend", &[("shm", Backend::Shm), ("nic", Backend::Nic)])
}
