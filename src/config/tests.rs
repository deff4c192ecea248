//! The example file is what it says, every wrong one is named, and no error shows the key.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::*;

const KEY: &str = "base64:AAECAwQFBgcICQoLDA0ODw==";

/// A file that is right; the tests change one thing in it.
const GOOD: &str = r#"cluster = "demo"
psk = "base64:AAECAwQFBgcICQoLDA0ODw=="
replicas = [
    { id = 0, control = "127.0.0.1:7101" },
    { id = 1, control = "127.0.0.1:7102", client = "127.0.0.1:7202" },
]
"#;

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/cluster.toml")
}

fn write(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn the_example_equals_the_defaults_that_it_documents() {
    let folder = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(example()).unwrap();
    let path = folder.path().join("cluster.toml");
    write(&path, &text, 0o644);
    write(
        &folder.path().join("cluster.key"),
        &format!("{KEY}\n"),
        0o600,
    );
    let from_file = Config::from_file(&path).unwrap();

    let member = |id: u8| {
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port + u16::from(id)));
        Member::new(id).control(at(7101)).client(at(7201))
    };
    let from_code = Config::builder("demo")
        .psk(Psk::from_text(KEY.as_bytes()).unwrap())
        .replica(member(2))
        .replica(member(0))
        .replica(member(1))
        .build()
        .unwrap();
    assert_eq!(from_file, from_code);
    assert_eq!(from_file.layout_hash(), from_code.layout_hash());

    // Every key stands in it, so that the comparison above means something.
    for key in keys::TOP {
        let written = text.lines().any(|line| {
            line.trim_start_matches("# ")
                .starts_with(&format!("{key} = "))
        });
        assert!(written || *key == "psk", "{key} is not in the example");
    }
}

#[test]
fn a_file_says_more_than_the_defaults() {
    let config = Config::from_toml(
        r#"
        cluster = "two"
        psk = "at least sixteen bytes"
        backend = "nic"
        device = "mlx5_0"
        log_bytes = 0x20_000
        cut_off_us = 65_536
        replication_poll = "spin"
        background_poll = "event"
        checksum = "always"
        digest_interval = 0
        [[replicas]]
        id = 8
        control = "[::1]:9"
        gid_index = 255
        [[replicas]]
        id = 4
        control = "10.0.0.1:9"
        device = "rxe0"
        replication_cpu = 3
        background_cpu = 0
        "#,
        "two.toml",
    )
    .unwrap();
    assert_eq!(
        config.members().iter().map(|m| m.id).collect::<Vec<_>>(),
        [4, 8]
    );
    assert_eq!(config.nic(4).unwrap().device.as_deref(), Some("rxe0"));
    let nic = config.nic(8).unwrap();
    assert_eq!(
        (nic.device.as_deref(), nic.gid_index),
        (Some("mlx5_0"), Some(255))
    );
    assert_eq!((config.log_bytes(), config.cut_off_us()), (131_072, 65_536));
    assert_eq!(config.replication_poll(), Poll::Spin);
    assert_eq!(config.background_poll(), Poll::Event);
    assert_eq!(config.checksum(), Checksum::Always);
    assert_eq!(config.digest_interval(), 0);
    assert_eq!(config.member(4).unwrap().replication_cpu, Some(3));
    let error = config.member(0).unwrap_err().to_string();
    assert_eq!(error, "replicas: no member has id 0; expected one of 4, 8");
}

/// What to take out of [`GOOD`], what to put there, and what the error says.
#[rustfmt::skip]
const BAD: &[(&str, &str, &str)] = &[
    ("id = 1", "id = 0",
     "cluster.toml:5: replicas[1].id = 0: already used by replicas[0]; ids are 0 to 8 and unique"),
    ("id = 1", "id = 9", "cluster.toml:5: replicas[1].id = 9: expected a whole number from 0 to 8 (ids are unique)"),
    ("id = 1", "id = -1", "cluster.toml:5: replicas[1].id = -1: expected a whole number from 0 to 8"),
    ("id = 1", "id = \"1\"", "cluster.toml:5: replicas[1].id = \"1\": expected a whole number from 0 to 8"),
    ("id = 1, ", "", "cluster.toml: replicas[1].id: missing; expected a whole number from 0 to 8"),
    ("127.0.0.1:7102", "127.0.0.1:7101",
     "replicas[1].control = \"127.0.0.1:7101\": already used by replicas[0].control; expected addresses to be \
      unique"),
    ("127.0.0.1:7202", "127.0.0.1:7101",
     "replicas[1].client = \"127.0.0.1:7101\": already used by replicas[0].control"),
    ("127.0.0.1:7102", "localhost:7102",
     "cluster.toml:5: replicas[1].control = \"localhost:7102\": expected an IP address and a port, such as \
      \"10.0.0.1:7101\"; names are not looked up"),
    ("127.0.0.1:7102", "127.0.0.1", "replicas[1].control = \"127.0.0.1\": expected an IP address and a port"),
    ("127.0.0.1:7102", "127.0.0.1:0", "replicas[1].control = \"127.0.0.1:0\": port 0; expected the port"),
    ("127.0.0.1:7102", "0.0.0.0:7102", "replicas[1].control = \"0.0.0.0:7102\": expected the address of one host"),
    ("\"127.0.0.1:7102\"", "7102", "replicas[1].control = 7102: expected an IP address and a port"),
    ("control = \"127.0.0.1:7101\"", "client = \"127.0.0.1:7101\"",
     "cluster.toml: replicas[0].control: missing; expected the IP address and port for the other members"),
    ("control = \"127.0.0.1:7101\"", "contro = \"127.0.0.1:7101\"",
     "cluster.toml:4: replicas[0].contro: unknown key; the nearest known one is control"),
    ("control = \"127.0.0.1:7101\"", "control = \"127.0.0.1:7101\", replication_cpu = 4096",
     "cluster.toml:4: replicas[0].replication_cpu = 4096: expected a whole number from 0 to 4095 (number of a \
      CPU)"),
    ("replicas = [", "replicas = [ 7,",
     "cluster.toml: replicas[0] = 7: expected 1 to 9 members, each { id, control }"),
    ("cluster = \"demo\"", "", "cluster.toml: cluster: missing; expected a name of 1 to 64 printable characters"),
    ("\"demo\"", "\"\"", "cluster.toml:1: cluster = \"\": expected a name of 1 to 64 printable characters"),
    ("\"demo\"", "\"a\\tb\"", "cluster.toml:1: cluster = \"a\\tb\": expected a name of 1 to 64 printable characters"),
    ("\"demo\"", "\"12345678901234567890123456789012345678901234567890123456789012345\"",
     "expected a name of 1 to 64 printable characters"),
    ("\"demo\"", "7", "cluster.toml:1: cluster = 7: expected a name of 1 to 64 printable characters"),
    ("psk = \"base64:AAECAwQFBgcICQoLDA0ODw==\"", "",
     "cluster.toml: psk_file: missing; expected psk_file, a file with the key that all members share, or psk"),
    ("psk = ", "psk_file = \"x\"\npsk = ", "psk: expected either psk or psk_file, and both are there"),
    ("\"base64:AAECAwQFBgcICQoLDA0ODw==\"", "\"tooshort\"",
     "cluster.toml:2: psk: a key of 8 bytes; expected 16 to 1024"),
    ("\"base64:AAECAwQFBgcICQoLDA0ODw==\"", "\"hex:0011\"",
     "cluster.toml:2: psk: a key of 2 bytes; expected 16 to 1024"),
    ("base64:AAECAwQFBgcICQoLDA0ODw==", "hex:AAECAwQFBgcICQoLDA0ODw==",
     "cluster.toml:2: psk: not hex after the prefix hex:; expected whole bytes in hex"),
    ("base64:AAECAwQFBgcICQoLDA0ODw==", "base64:AAECAwQFBgcICQoLDA0ODw", "psk: not base64 after the prefix base64:"),
    ("\"base64:AAECAwQFBgcICQoLDA0ODw==\"", "12345678901234567", "cluster.toml:2: psk: expected a text"),
    ("psk = ", "pks = ", "cluster.toml:2: pks: unknown key; the nearest known one is psk"),
    ("psk = ", "psk_file = ", "cluster.toml:2: psk_file = \"base64:AAECAwQFBgcICQoLDA0ODw==\": cannot open"),
    ("cluster", "form = true\ncluster",
     "cluster.toml:1: form: not a key: whether a replica forms a new group is said when it is started"),
    ("cluster", "zzzzzzzzzzzzzzzzz = 1\ncluster", "zzzzzzzzzzzzzzzzz: unknown key; expected one of cluster, backend"),
    ("cluster", "backend = \"inproc\"\ncluster",
     "cluster.toml:1: backend = \"inproc\": a file is for processes, and these are threads of one; expected \
      \"shm\" or \"nic\""),
    ("cluster", "backend = \"rdma\"\ncluster", "backend = \"rdma\": expected \"shm\" or \"nic\""),
    ("cluster", "device = \"mlx5_0\"\ncluster", "device = \"mlx5_0\": expected only with backend = \"nic\""),
    ("cluster", "gid_index = 1\ncluster", "gid_index = 1: expected only with backend = \"nic\""),
    ("cluster", "backend = \"nic\"\ngid_index = 256\ncluster",
     "cluster.toml:2: gid_index = 256: expected a whole number from 0 to 255"),
    ("cluster", "backend = \"nic\"\ndevice = \"../x\"\ncluster",
     "device = \"../x\": expected the name of an RDMA device"),
    ("cluster", "log_bytes = 65535\ncluster",
     "cluster.toml:1: log_bytes = 65535: expected a whole number from 65536 to 68719476736, a power of two \
      (bytes)"),
    ("cluster", "log_bytes = 65537\ncluster",
     "log_bytes = 65537: expected a whole number from 65536 to 68719476736, a power of two (bytes)"),
    ("cluster", "log_bytes = 9999999999999999999999999\ncluster",
     "log_bytes = 9999999999999999999999999: expected a whole number from 65536"),
    ("cluster", "log_bytes = \"64 MiB\"\ncluster", "log_bytes = \"64 MiB\": expected a whole number from 65536"),
    ("cluster", "log_bytes = 65536\nmax_command_bytes = 8193\ncluster",
     "cluster.toml:2: max_command_bytes = 8193: does not fit the log; expected at most 8192, log_bytes / 8"),
    ("cluster", "max_command_bytes = 0\ncluster", "max_command_bytes = 0: expected a whole number from 8 to"),
    ("cluster", "window = 0\ncluster", "window = 0: expected a whole number from 1 to 65536 (commands in flight)"),
    ("cluster", "heartbeat_us = 0\ncluster", "heartbeat_us = 0: expected a whole number from 1 to 1000000"),
    ("cluster", "heartbeat_us = 1.5\ncluster", "heartbeat_us = 1.5: expected a whole number from 1 to 1000000"),
    ("cluster", "heartbeat_us = 300\ncluster",
     "cluster.toml: detect_us = 500: expected at least 600, heartbeat_us * 2"),
    ("cluster", "detect_us = 99\ncluster", "cluster.toml:1: detect_us = 99: expected at least 100, heartbeat_us * 2"),
    ("cluster", "detect_us = 60000001\ncluster", "detect_us = 60000001: expected a whole number from 2 to 60000000"),
    ("cluster", "completion_timeout_us = 99\ncluster",
     "completion_timeout_us = 99: expected a whole number from 100 to"),
    ("cluster", "idle_flush_us = 0\ncluster", "idle_flush_us = 0: expected a whole number from 1 to 1000000"),
    ("cluster", "cut_off_us = 999\ncluster",
     "cluster.toml:1: cut_off_us = 999: expected a whole number from 1000 to 60000000 (microseconds)"),
    ("cluster", "cut_off_us = 0.5\ncluster", "cut_off_us = 0.5: expected a whole number from 1000 to 60000000"),
    ("cluster", "cut_off = 0.5\ncluster", "cut_off"),
    ("cluster", "digest_interval = -1\ncluster", "digest_interval = -1: expected a whole number from 0 to"),
    ("cluster", "sessions = 0\ncluster", "sessions = 0: expected a whole number from 1 to 1048576 (clients)"),
    ("cluster", "snapshot_max_bytes = 1\ncluster", "snapshot_max_bytes = 1: expected a whole number from 65536 to"),
    ("cluster", "checksum = \"never\"\ncluster", "checksum = \"never\": expected \"auto\" or \"always\""),
    ("cluster", "checksum = false\ncluster", "checksum = false: expected \"auto\" or \"always\""),
    ("cluster", "replication_poll = \"busy\"\ncluster",
     "cluster.toml:1: replication_poll = \"busy\": expected \"spin\" or \"adaptive\" or \"event\""),
    ("cluster", "background_poll = 1\ncluster",
     "background_poll = 1: expected \"spin\" or \"adaptive\" or \"event\""),
    ("cluster", "cluster = \"twice\"\ncluster", "cluster.toml:2: not TOML: duplicate key"),
    ("\"demo\"", "\"demo", "cluster.toml:1: not TOML: invalid basic string"),
];

#[test]
fn every_wrong_file_is_refused_with_the_key_the_value_and_what_was_expected() {
    Config::from_toml(GOOD, "cluster.toml").expect("the file that the others differ from");
    for (from, to, message) in BAD {
        assert!(GOOD.contains(from), "{from} is not in the good file");
        let text = GOOD.replacen(from, to, 1);
        let error = Config::from_toml(&text, "cluster.toml")
            .map(|_| ())
            .expect_err(message);
        let said = error.to_string();
        let whole_start = !message.starts_with("cluster.toml") || said.starts_with(message);
        assert!(
            said.contains(message) && whole_start,
            "said: {said}\nnot:  {message}"
        );
        assert!(said.starts_with("cluster.toml"), "no file in: {said}");
    }
    assert!(BAD.len() >= 25);
}

#[test]
fn the_number_of_members_is_1_to_9() {
    let with = |count: u8| {
        let members: String = (0..count)
            .map(|id| {
                format!(
                    "[[replicas]]\nid = {}\ncontrol = \"127.0.0.1:{}\"\n",
                    id % 9,
                    7000 + u16::from(id)
                )
            })
            .collect();
        let none = if count == 0 { "replicas = []\n" } else { "" };
        let text = format!("cluster = \"c\"\npsk = \"{KEY}\"\n{none}{members}");
        Config::from_toml(&text, "c.toml").map_err(|error| error.to_string())
    };
    assert_eq!(with(1).unwrap().members().len(), 1);
    assert_eq!(with(9).unwrap().members().len(), 9);
    let rule = "members; expected 1 to 9, each { id, control }";
    assert!(
        with(0)
            .unwrap_err()
            .contains(&format!("replicas: 0 {rule}"))
    );
    assert!(
        with(10)
            .unwrap_err()
            .contains(&format!("replicas: 10 {rule}"))
    );
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (toml, key) = (
        folder.path().join("cluster.toml"),
        folder.path().join("key"),
    );
    let refused = |message: &str| {
        let error = Config::from_file(&toml)
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(error.contains(message), "{error}");
        assert!(
            error.contains("expected none for others: chmod o="),
            "{error}"
        );
    };

    write(&toml, GOOD, 0o600);
    Config::from_file(&toml).expect("the key stands in a private file");
    write(&toml, GOOD, 0o640);
    Config::from_file(&toml).expect("nor does the owner's group hurt");
    write(&toml, GOOD, 0o644);
    refused("cluster.toml:2: psk: ");

    write(
        &toml,
        &GOOD.replace(&format!("psk = \"{KEY}\""), "psk_file = \"key\""),
        0o644,
    );
    write(&key, KEY, 0o600);
    Config::from_file(&toml).expect("the key stands in a private file");
    for mode in [0o604, 0o602, 0o601] {
        write(&key, KEY, mode);
        refused("psk_file = \"key\": ");
    }
}

#[test]
fn a_key_reads_the_same_in_every_form() {
    let bytes: Vec<u8> = (0..16).collect();
    let plain = Psk::new(&bytes).unwrap();
    assert_eq!(
        Psk::from_text(b"hex:000102030405060708090A0b0c0d0e0f"),
        Ok(plain.clone())
    );
    assert_eq!(Psk::from_text(KEY.as_bytes()), Ok(plain.clone()));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key");
    for text in [KEY.to_owned(), format!("{KEY}\n"), format!("{KEY}\r\n")] {
        write(&path, &text, 0o400);
        assert_eq!(Psk::from_file(&path), Ok(plain.clone()));
        fs::remove_file(&path).unwrap();
    }
    write(&path, &"k".repeat(4096), 0o400);
    assert!(
        Psk::from_file(&path)
            .unwrap_err()
            .contains("expected a key and no more")
    );
}

#[test]
fn the_key_is_never_shown() {
    let config = Config::from_toml(GOOD, "cluster.toml").unwrap();
    let secret = KEY.strip_prefix("base64:").unwrap();
    let shown = format!("{config:?} {:?}", config.psk());
    assert!(
        shown.contains("Psk(not shown)") && !shown.contains(secret) && !shown.contains("[0, 1, 2")
    );
    for (from, to) in [
        ("psk = \"", "psk = \"x"),
        ("psk = \"base64:", "psk = \"hex:"),
        ("psk = ", "pskk = "),
        ("psk = ", "psk ="),
        ("psk = \"", "psk = "),
        ("==\"", "== "),
        ("psk = ", "psk_file = 'x'\npsk = "),
    ] {
        let text = GOOD.replacen(from, to, 1);
        if let Err(error) = Config::from_toml(&text, "cluster.toml") {
            assert!(
                !format!("{error} {error:?}").contains("AAECAwQF"),
                "{error:?}"
            );
        }
    }
}

#[test]
fn the_layout_differs_exactly_where_members_must_agree() {
    let of = |extra: &str| {
        Config::from_toml(&format!("{extra}\n{GOOD}"), "c.toml")
            .unwrap()
            .layout()
    };
    let base = of("");
    for (extra, differs) in [
        ("log_bytes = 131072", "log ("),
        ("max_command_bytes = 4096", "log ("),
        ("checksum = \"always\"", "log ("),
        ("backend = \"nic\"", "log ("),
        ("window = 1", "limits ("),
        ("heartbeat_us = 51", "limits ("),
        ("detect_us = 501", "limits ("),
        ("cut_off_us = 60000", "limits ("),
        ("digest_interval = 0", "limits ("),
        ("sessions = 2", "limits ("),
        ("snapshot_max_bytes = 65536", "limits ("),
    ] {
        let other = of(extra);
        let difference = base.difference(&other);
        let only = difference.starts_with(differs) && !difference.contains(" and ");
        assert!(only, "{extra}: {difference}");
        assert_ne!(base.hash(), other.hash(), "{extra}");
    }
    // What each member may choose for itself, and the same said in another way.
    for same in [
        "replication_poll = \"spin\"",
        "background_poll = \"event\"",
        "completion_timeout_us = 5000",
        "idle_flush_us = 7",
    ] {
        assert_eq!(base, of(same), "{same}");
    }
    let moved = Config::from_toml(&GOOD.replace("7202", "7203"), "c.toml").unwrap();
    assert_eq!(
        base.difference(&moved.layout()),
        "replicas (id, control, client)"
    );
    assert_eq!(base.difference(&base), "");
    // Pinned, as members of different builds compare it.
    assert_eq!(
        base.hash(),
        16_254_658_433_191_753_849,
        "the hash of a given file changed"
    );
}

#[test]
fn in_process_needs_neither_address_nor_key() {
    let members = |backend| {
        Config::builder("inside")
            .backend(backend)
            .replica(Member::new(0))
            .replica(Member::new(1))
            .build()
    };
    assert!(members(Backend::Inproc).unwrap().psk().is_none());
    let error = members(Backend::Shm).unwrap_err().to_string();
    assert_eq!(
        error,
        "replicas[0].control: missing; expected the IP address and port for the other members"
    );
}
