//! What a redis-server of a node must be, and must not be told: everything here is refused before anything starts, with
//! the reason and the remedy.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// The shared object, beside this program.
const OBJECT: &str = "libmu_redis.so";
/// The version whose order of execution, append-only file and replication the object is made for.
const VERSION: &str = "7.0.";
/// What makes a path a pattern of paths for redis-server.
const PATTERN: [char; 3] = ['*', '?', '['];
/// Configuration files that include each other are followed so deep.
const INCLUDES_MAX: usize = 8;

/// A setting with a value that is right.
struct Setting {
    name: &'static str,
    right: &'static [&'static str],
    why: &'static str,
}

const fn setting(name: &'static str, right: &'static [&'static str], why: &'static str) -> Setting {
    Setting { name, right, why }
}

/// No value is right: the node sets it.
const NODES: &[&str] = &[];

const SETTINGS: &[Setting] = &[
    setting(
        "appendonly",
        &["yes"],
        "what is written to the append-only file is what is replicated",
    ),
    setting(
        "appendfsync",
        &["always"],
        "a reply must not leave before what it tells of is decided",
    ),
    setting(
        "no-appendfsync-on-rewrite",
        &["no"],
        "replies would leave undecided while a child writes a file",
    ),
    setting(
        "aof-timestamp-enabled",
        &["no"],
        "time stamps are no commands, and the others would refuse them",
    ),
    setting(
        "save",
        &["\"\"", "''", ""],
        "nothing of a node lasts beyond its process; others give it its dataset",
    ),
    setting(
        "cluster-enabled",
        &["no"],
        "a node is a primary or a replica, and no part of a Redis Cluster",
    ),
    setting(
        "io-threads",
        &["1"],
        "replies have to leave by the thread that proves the leadership",
    ),
    setting("daemonize", &["no"], "mu redis watches the server"),
    setting(
        "replica-read-only",
        &["yes"],
        "a follower that is written to differs from the others",
    ),
    setting(
        "slave-read-only",
        &["yes"],
        "a follower that is written to differs from the others",
    ),
    setting(
        "replica-ignore-maxmemory",
        &["yes"],
        "a follower that evicts keys by itself differs from the others",
    ),
    setting(
        "slave-ignore-maxmemory",
        &["yes"],
        "a follower that evicts keys by itself differs from the others",
    ),
    setting(
        "tls-replication",
        &["no"],
        "a follower's server is fed by its own node, in plain text",
    ),
    setting(
        "crash-log-enabled",
        &["no"],
        "a primary that crashes has to be gone at once",
    ),
    setting(
        "crash-memcheck-enabled",
        &["no"],
        "the test writes over memory that the node's threads still use",
    ),
    setting("replicaof", NODES, "mu decides who is the primary"),
    setting("slaveof", NODES, "mu decides who is the primary"),
    setting(
        "port",
        NODES,
        "the port is the client address of this replica in the cluster's configuration",
    ),
    setting("dir", NODES, "the folder is that of mu redis --dir"),
    setting("dbfilename", NODES, "the node names its files itself"),
    setting("appendfilename", NODES, "the node names its files itself"),
    setting("appenddirname", NODES, "the node names its files itself"),
    setting(
        "masterauth",
        NODES,
        "the node's own replication has a secret of its own",
    ),
    setting(
        "masteruser",
        NODES,
        "the node's own replication has a secret of its own",
    ),
    setting(
        "rename-command",
        NODES,
        "the node calls commands of its server by their names",
    ),
    setting(
        "requirepass",
        NODES,
        "it would be this node's only: use ACL SETUSER, which is replicated",
    ),
];

/// The shared object.
pub(crate) fn object() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let object = program.with_file_name(OBJECT);
    if !object.is_file() {
        bail!(
            "{} is missing: it stands beside the program mu; cargo build --release makes both",
            object.display()
        );
    }
    Ok(object)
}

/// Looks at the server's program.
pub(crate) fn server(program: &str) -> Result<()> {
    let output = match Command::new(program).arg("--version").output() {
        Ok(output) => output,
        Err(error) => bail!(
            "{program} cannot be run: {error}; on Debian, apt-get install redis-server, or name another one behind --"
        ),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text
        .split_whitespace()
        .find_map(|word| word.strip_prefix("v="));
    match version {
        Some(version) if version.starts_with(VERSION) => Ok(()),
        Some(version) => bail!(
            "{program} is version {version}, and {VERSION}x is needed: name such a redis-server behind --; \
             Debian 12 has it"
        ),
        None => bail!(
            "{program} --version says {:?}, which is no redis-server",
            text.trim()
        ),
    }
}

/// Names of settings, in lower case.
pub(crate) type Names = BTreeSet<String>;

/// Looks at what the server is told: a configuration file, if the first argument is one, and options. Gives the names
/// of all settings that it found.
pub(crate) fn arguments(arguments: &[String]) -> Result<Names> {
    let mut names = Names::new();
    let mut options = arguments;
    if let Some((first, rest)) = arguments.split_first()
        && !first.starts_with("--")
    {
        file(Path::new(first), 0, &mut names)?;
        options = rest;
    }
    let mut words = options.iter().peekable();
    while let Some(word) = words.next() {
        let Some(name) = word.strip_prefix("--") else {
            bail!("{word:?} is no option of redis-server: expected --NAME VALUE");
        };
        let mut values = Vec::new();
        while let Some(value) = words.next_if(|word| !word.starts_with("--")) {
            values.push(value.clone());
        }
        if name == "sentinel" {
            bail!("--sentinel: a node is a server; it answers Sentinel's questions beside it");
        }
        judge(name, &values.join(" "), "the command line", 0, &mut names)?;
    }
    Ok(names)
}

/// Whether redis-server takes it for a pattern of paths where it includes a file of that name, and includes none if
/// nothing is like it.
fn is_pattern(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.contains(|letter| PATTERN.contains(&letter))
}

/// The folder of the server's files.
pub(crate) fn folder(path: &Path) -> Result<()> {
    if is_pattern(path) {
        bail!(
            "the server's folder {}: redis-server takes this for a pattern: give --dir a path without any of * ? [",
            path.display()
        );
    }
    Ok(())
}

fn file(path: &Path, depth: usize, names: &mut Names) -> Result<()> {
    if is_pattern(path) {
        bail!(
            "{}: this is a pattern, and which files it means may change: expected one file",
            path.display()
        );
    }
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => bail!(
            "{}: {error}; expected a configuration of redis-server",
            path.display()
        ),
    };
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let (name, value) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        judge(
            name,
            value.trim(),
            &format!("{}:{}", path.display(), number + 1),
            depth,
            names,
        )?;
    }
    Ok(())
}

fn judge(name: &str, value: &str, place: &str, depth: usize, names: &mut Names) -> Result<()> {
    let name = name.to_ascii_lowercase();
    if name.contains(|letter: char| !letter.is_ascii_alphanumeric() && !"-_.".contains(letter)) {
        bail!("{place}: {name:?}: expected the name of a setting, without quotes and alone");
    }
    if name == "include" && depth == INCLUDES_MAX {
        bail!(
            "{place}: include: expected files that include each other at most {INCLUDES_MAX} deep"
        );
    }
    if name == "include" {
        return file(Path::new(value.trim_matches('"')), depth + 1, names);
    }
    names.insert(name.clone());
    let Some(setting) = SETTINGS.iter().find(|setting| setting.name == name) else {
        return Ok(());
    };
    if setting
        .right
        .iter()
        .any(|right| right.eq_ignore_ascii_case(value))
    {
        return Ok(());
    }
    let remedy = match setting.right {
        [] | ["\"\"", ..] => "take it out".to_owned(),
        [right, ..] => format!("take it out, or set it to {right}"),
    };
    bail!("{place}: {name} {value}: {}; {remedy}", setting.why);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(line: &str) -> Result<Names> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        arguments(&words)
    }

    #[test]
    fn settings_that_break_the_promise_are_refused_with_the_remedy() {
        for line in [
            "--appendonly no",
            "--maxmemory 1gb --appendfsync everysec",
            "--AppendFsync no",
            "--save 900 1",
            "--cluster-enabled yes",
            "--io-threads 4",
            "--replicaof 127.0.0.1 1",
            "--port 1",
            "--requirepass x",
            "--rename-command SAVE x",
            "--sentinel",
            "--aof-timestamp-enabled yes",
            "--replica-ignore-maxmemory no",
            "--tls-replication yes",
            "--crash-log-enabled yes",
            "--\"appendonly\" no",
            "--append'only' no",
            "--include a*.conf",
            "--include a[b].conf",
            "appendonly no",
        ] {
            let error = judged(line).expect_err(line).to_string();
            assert!(
                error.contains("take it out")
                    || error.contains("expected")
                    || error.contains("beside"),
                "{error}"
            );
        }
        for line in [
            "",
            "--maxmemory 1gb --appendonly yes --appendfsync always",
            "--io-threads 1",
            "--save",
            "--tls-replication no --module.setting_a 1",
        ] {
            judged(line).expect(line);
        }
        let alone = ["--appendonly no".to_owned()];
        assert!(arguments(&alone).is_err(), "two words in one argument");
    }

    #[test]
    fn a_file_is_read_with_what_it_includes() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |name: &str| dir.path().join(name);
        fs::write(at("innermost.conf"), "Repl-Backlog-TTL 60\n").expect("written");
        fs::write(
            at("first.conf"),
            format!("include {}\n", at("innermost.conf").display()),
        )
        .expect("written");
        let first = at("first.conf").display().to_string();
        let found = arguments(&[
            first,
            "--port-less".into(),
            "--maxmemory".into(),
            "1gb".into(),
        ]);
        let found = found.expect("nothing in the way");
        assert_eq!(
            found.iter().collect::<Vec<_>>(),
            ["maxmemory", "port-less", "repl-backlog-ttl"]
        );
        fs::write(at("inner.conf"), "# x\n\nappendfsync everysec\n").expect("written");
        fs::write(
            at("outer.conf"),
            format!("maxmemory 1gb\ninclude {}\n", at("inner.conf").display()),
        )
        .expect("written");
        let outer = [at("outer.conf").display().to_string()];
        let error = arguments(&outer).expect_err("refused").to_string();
        assert!(
            error.contains("inner.conf:3") && error.contains("set it to always"),
            "{error}"
        );
    }

    #[test]
    fn files_are_followed_no_deeper_than_they_are_looked_at() {
        let dir = tempfile::tempdir().expect("a folder");
        let at = |n: usize| dir.path().join(format!("{n}.conf"));
        let chain = |last: usize| {
            for n in 0..last {
                fs::write(at(n), format!("include {}\n", at(n + 1).display())).expect("written");
            }
            fs::write(at(last), "appendfsync no\n").expect("written");
            let error = arguments(&[at(0).display().to_string()]).expect_err("refused");
            error.to_string()
        };
        assert!(chain(INCLUDES_MAX).contains("set it to always"));
        assert!(chain(INCLUDES_MAX + 1).contains("deep"));
    }
}
