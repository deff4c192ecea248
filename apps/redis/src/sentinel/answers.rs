//! What Sentinel's questions are answered with. See [`super`].

use std::net::SocketAddr;

/// A node of the group.
#[derive(Clone, Debug)]
pub(crate) struct Peer {
    pub(crate) id: u8,
    pub(crate) client: SocketAddr,
    pub(crate) sentinel: SocketAddr,
    pub(crate) alive: bool,
}

/// The group.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) own: u8,
    pub(crate) epoch: u64,
    pub(crate) primary: Option<SocketAddr>,
    pub(crate) peers: Vec<Peer>,
}

/// Whether a connection lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    GoOn,
    Over,
}

/// The event that clients wait for.
const SWITCH: &[u8] = b"+switch-master";

/// One connection: its protocol, and what it wants to hear.
pub(crate) struct Session {
    version: u8,
    channels: Vec<Vec<u8>>,
    patterns: Vec<Vec<u8>>,
    primary: Option<SocketAddr>,
}

impl Session {
    pub(crate) fn new(primary: Option<SocketAddr>) -> Self {
        Self {
            version: 2,
            channels: Vec::new(),
            patterns: Vec::new(),
            primary,
        }
    }

    /// Whether it wants to hear of anything.
    pub(crate) fn listens(&self) -> bool {
        !(self.channels.is_empty() && self.patterns.is_empty())
    }

    /// There is another primary.
    pub(crate) fn switched(&mut self, group: &Group, now: SocketAddr, out: &mut Vec<u8>) {
        let Some(before) = self.primary.replace(now) else {
            return;
        };
        let message = format!(
            "{} {} {} {} {}",
            group.name,
            before.ip(),
            before.port(),
            now.ip(),
            now.port()
        );
        if self.channels.iter().any(|channel| channel == SWITCH) {
            self.push(&[b"message", SWITCH, message.as_bytes()], out);
        }
        let fits = |pattern: &&Vec<u8>| match pattern.split_last() {
            Some((b'*', start)) => SWITCH.starts_with(start),
            _ => pattern.as_slice() == SWITCH,
        };
        if let Some(pattern) = self.patterns.iter().find(fits) {
            self.push(&[b"pmessage", pattern, SWITCH, message.as_bytes()], out);
        }
    }

    fn push(&self, items: &[&[u8]], out: &mut Vec<u8>) {
        self.push_head(items.len(), out);
        items.iter().for_each(|item| bulk(item, out));
    }

    fn push_head(&self, len: usize, out: &mut Vec<u8>) {
        let mark = if self.version == 3 { '>' } else { '*' };
        out.extend_from_slice(format!("{mark}{len}\r\n").as_bytes());
    }

    /// Answers one command.
    pub(crate) fn answer(&mut self, group: &Group, command: &[&[u8]], out: &mut Vec<u8>) -> Answer {
        let Some((name, arguments)) = command.split_first() else {
            return Answer::GoOn;
        };
        match name.to_ascii_lowercase().as_slice() {
            b"ping" if self.listens() && self.version == 2 => self.push(&[b"pong", b""], out),
            b"ping" => out.extend_from_slice(b"+PONG\r\n"),
            b"hello" => self.hello(arguments, out),
            b"client" | b"select" | b"readonly" => out.extend_from_slice(b"+OK\r\n"),
            b"command" => array(0, out),
            b"role" => {
                array(2, out);
                bulk(b"sentinel", out);
                array(1, out);
                bulk(group.name.as_bytes(), out);
            }
            b"info" => bulk(information(group).as_bytes(), out),
            b"sentinel" => self.sentinel(group, arguments, out),
            b"subscribe" => self.subscribe(b"subscribe", arguments, out),
            b"psubscribe" => self.subscribe(b"psubscribe", arguments, out),
            b"unsubscribe" => self.unsubscribe(b"unsubscribe", arguments, out),
            b"punsubscribe" => self.unsubscribe(b"punsubscribe", arguments, out),
            b"quit" => {
                out.extend_from_slice(b"+OK\r\n");
                return Answer::Over;
            }
            _ => error(
                "unknown command: this port answers Sentinel's questions",
                out,
            ),
        }
        Answer::GoOn
    }

    fn hello(&mut self, arguments: &[&[u8]], out: &mut Vec<u8>) {
        match arguments.first() {
            Some(&b"3") => self.version = 3,
            Some(&b"2") => self.version = 2,
            None => {}
            Some(_) => return out.extend_from_slice(b"-NOPROTO unsupported protocol version\r\n"),
        }
        self.map_head(5, out);
        for (name, value) in [
            ("server", "redis"),
            ("version", "7.0.15"),
            ("mode", "sentinel"),
            ("role", "sentinel"),
        ] {
            bulk(name.as_bytes(), out);
            bulk(value.as_bytes(), out);
        }
        bulk(b"proto", out);
        out.extend_from_slice(format!(":{}\r\n", self.version).as_bytes());
    }

    fn map_head(&self, pairs: usize, out: &mut Vec<u8>) {
        match self.version {
            3 => out.extend_from_slice(format!("%{pairs}\r\n").as_bytes()),
            _ => array(2 * pairs, out),
        }
    }

    fn map(&self, pairs: &[(&str, String)], out: &mut Vec<u8>) {
        self.map_head(pairs.len(), out);
        for (name, value) in pairs {
            bulk(name.as_bytes(), out);
            bulk(value.as_bytes(), out);
        }
    }

    fn sentinel(&self, group: &Group, arguments: &[&[u8]], out: &mut Vec<u8>) {
        let Some((what, names)) = arguments.split_first() else {
            return error("wrong number of arguments for 'sentinel' command", out);
        };
        let known = names
            .first()
            .is_some_and(|name| *name == group.name.as_bytes());
        match (what.to_ascii_lowercase().as_slice(), known) {
            (b"masters", _) => {
                array(1, out);
                self.map(&primary(group), out);
            }
            (b"myid", _) => bulk(run_id(group.own).as_bytes(), out),
            (b"get-master-addr-by-name", true) if group.primary.is_some() => {
                let primary = group.primary.expect("there is one");
                array(2, out);
                bulk(primary.ip().to_string().as_bytes(), out);
                bulk(primary.port().to_string().as_bytes(), out);
            }
            (b"get-master-addr-by-name", _) => out.extend_from_slice(match self.version {
                3 => b"_\r\n",
                _ => b"*-1\r\n",
            }),
            (b"master", true) => self.map(&primary(group), out),
            (b"slaves" | b"replicas", true) => {
                let replicas: Vec<_> = replicas(group).collect();
                array(replicas.len(), out);
                replicas.iter().for_each(|replica| self.map(replica, out));
            }
            (b"sentinels", true) => {
                let others: Vec<_> = group
                    .peers
                    .iter()
                    .filter(|peer| peer.id != group.own)
                    .collect();
                array(others.len(), out);
                others
                    .iter()
                    .for_each(|peer| self.map(&sentinel(peer), out));
            }
            (b"ckquorum", true) => {
                let alive = group.peers.iter().filter(|peer| peer.alive).count();
                match alive > group.peers.len() / 2 {
                    true => out
                        .extend_from_slice(format!("+OK {alive} usable Sentinels\r\n").as_bytes()),
                    false => out.extend_from_slice(b"-NOQUORUM less than a majority is alive\r\n"),
                }
            }
            (b"master" | b"slaves" | b"replicas" | b"sentinels" | b"ckquorum", false) => {
                error("No such master with that name", out);
            }
            _ => error("unknown subcommand: nothing can be changed here", out),
        }
    }

    fn heard(&self) -> usize {
        self.channels.len() + self.patterns.len()
    }

    fn subscribe(&mut self, how: &[u8], names: &[&[u8]], out: &mut Vec<u8>) {
        for name in names {
            let list = match how[0] {
                b'p' => &mut self.patterns,
                _ => &mut self.channels,
            };
            if !list.iter().any(|known| known == name) && list.len() < SUBSCRIPTIONS_MAX {
                list.push(name.to_vec());
            }
            self.count(how, Some(name), out);
        }
    }

    fn unsubscribe(&mut self, how: &[u8], names: &[&[u8]], out: &mut Vec<u8>) {
        let list = match how[0] {
            b'p' => &mut self.patterns,
            _ => &mut self.channels,
        };
        let gone: Vec<Vec<u8>> = match names {
            [] => std::mem::take(list),
            _ => names.iter().map(|name| name.to_vec()).collect(),
        };
        list.retain(|known| !gone.contains(known));
        if gone.is_empty() {
            self.count(how, None, out);
        }
        for name in gone {
            self.count(how, Some(&name), out);
        }
    }

    fn count(&self, how: &[u8], name: Option<&[u8]>, out: &mut Vec<u8>) {
        self.push_head(3, out);
        bulk(how, out);
        match name {
            Some(name) => bulk(name, out),
            None if self.version == 3 => out.extend_from_slice(b"_\r\n"),
            None => out.extend_from_slice(b"$-1\r\n"),
        }
        out.extend_from_slice(format!(":{}\r\n", self.heard()).as_bytes());
    }
}

/// Channels of one connection.
const SUBSCRIPTIONS_MAX: usize = 64;

fn array(len: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("*{len}\r\n").as_bytes());
}

fn bulk(bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(format!("${}\r\n", bytes.len()).as_bytes());
    out.extend_from_slice(bytes);
    out.extend_from_slice(b"\r\n");
}

fn error(why: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("-ERR {why}\r\n").as_bytes());
}

/// Forty digits, as Redis's run ids are.
fn run_id(id: u8) -> String {
    format!("{:040x}", u64::from(id) + 1)
}

type Pairs = Vec<(&'static str, String)>;

/// What all states begin with.
fn state(name: String, at: SocketAddr, id: u8, flags: &str) -> Pairs {
    vec![
        ("name", name),
        ("ip", at.ip().to_string()),
        ("port", at.port().to_string()),
        ("runid", run_id(id)),
        ("flags", flags.into()),
        ("link-pending-commands", "0".into()),
        ("link-refcount", "1".into()),
        ("last-ping-sent", "0".into()),
        ("last-ok-ping-reply", "0".into()),
        ("last-ping-reply", "0".into()),
        ("down-after-milliseconds", "100".into()),
    ]
}

fn primary(group: &Group) -> Pairs {
    let nowhere = SocketAddr::from(([0, 0, 0, 0], 0));
    let (at, flags) = match group.primary {
        Some(at) => (at, "master"),
        None => (nowhere, "master,s_down,o_down"),
    };
    let id = group
        .peers
        .iter()
        .find(|peer| peer.client == at)
        .map_or(0, |peer| peer.id);
    let mut pairs = state(group.name.clone(), at, id, flags);
    let others = group.peers.len() - 1;
    pairs.extend([
        ("role-reported", "master".into()),
        ("config-epoch", group.epoch.to_string()),
        ("num-slaves", others.to_string()),
        ("num-other-sentinels", others.to_string()),
        ("quorum", (group.peers.len() / 2 + 1).to_string()),
        ("failover-timeout", "1000".into()),
        ("parallel-syncs", others.to_string()),
    ]);
    pairs
}

fn replicas(group: &Group) -> impl Iterator<Item = Pairs> {
    let peers = group
        .peers
        .iter()
        .filter(|peer| Some(peer.client) != group.primary);
    peers.map(|peer| {
        let flags = match peer.alive {
            true => "slave",
            false => "slave,s_down,disconnected",
        };
        let mut pairs = state(peer.client.to_string(), peer.client, peer.id, flags);
        let (host, port) = group
            .primary
            .map_or(("?".into(), 0), |at| (at.ip().to_string(), at.port()));
        pairs.extend([
            ("role-reported", "slave".into()),
            (
                "master-link-status",
                if peer.alive { "ok" } else { "err" }.into(),
            ),
            ("master-host", host),
            ("master-port", port.to_string()),
            ("slave-priority", "100".into()),
            ("slave-repl-offset", "0".into()),
            ("replica-announced", "1".into()),
        ]);
        pairs
    })
}

fn sentinel(peer: &Peer) -> Pairs {
    let flags = match peer.alive {
        true => "sentinel",
        false => "sentinel,s_down",
    };
    state(run_id(peer.id), peer.sentinel, peer.id, flags)
}

fn information(group: &Group) -> String {
    let (status, at) = match group.primary {
        Some(at) => ("ok", at.to_string()),
        None => ("odown", "?:0".into()),
    };
    let others = group.peers.len() - 1;
    format!(
        "# Server\r\nredis_mode:sentinel\r\n\r\n# Sentinel\r\nsentinel_masters:1\r\nsentinel_tilt:0\r\n\
         master0:name={},status={status},address={at},slaves={others},sentinels={}\r\n",
        group.name,
        group.peers.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn group(primary: Option<u16>) -> Group {
        let peer = |id: u8| Peer {
            id,
            client: at(6379 + u16::from(id)),
            sentinel: at(26379 + u16::from(id)),
            alive: id != 2,
        };
        Group {
            name: "g".into(),
            own: 1,
            epoch: 7,
            primary: primary.map(at),
            peers: (0..3).map(peer).collect(),
        }
    }

    fn asked(session: &mut Session, group: &Group, line: &str) -> String {
        let words: Vec<&[u8]> = line.split(' ').map(str::as_bytes).collect();
        let mut out = Vec::new();
        session.answer(group, &words, &mut out);
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn the_address_is_told_and_so_is_that_there_is_none() {
        let mut session = Session::new(None);
        let line = "SENTINEL get-master-addr-by-name g";
        assert_eq!(
            asked(&mut session, &group(Some(6380)), line),
            "*2\r\n$9\r\n127.0.0.1\r\n$4\r\n6380\r\n"
        );
        assert_eq!(asked(&mut session, &group(None), line), "*-1\r\n");
        assert!(asked(&mut session, &group(None), "SENTINEL masters").contains("o_down"));
        assert!(
            asked(&mut session, &group(None), "SENTINEL replicas h")
                .starts_with("-ERR No such master")
        );
        let replicas = asked(&mut session, &group(Some(6380)), "SENTINEL replicas g");
        assert!(
            replicas.starts_with("*2\r\n") && replicas.contains("slave,s_down"),
            "{replicas}"
        );
        assert_eq!(
            asked(&mut session, &group(None), "SENTINEL sentinels g")
                .matches("runid")
                .count(),
            2
        );
    }

    #[test]
    fn a_switch_is_told_to_who_wants_to_hear_it() {
        let mut session = Session::new(Some(at(6379)));
        asked(&mut session, &group(Some(6379)), "SUBSCRIBE +switch-master");
        let mut deaf = Session::new(Some(at(6379)));
        let (mut heard, mut nothing) = (Vec::new(), Vec::new());
        session.switched(&group(Some(6380)), at(6380), &mut heard);
        deaf.switched(&group(Some(6380)), at(6380), &mut nothing);
        let heard = String::from_utf8(heard).expect("text");
        assert!(heard.contains("g 127.0.0.1 6379 127.0.0.1 6380"), "{heard}");
        assert!(nothing.is_empty());
    }

    #[test]
    fn the_newer_protocol_gets_maps() {
        let mut session = Session::new(None);
        assert!(asked(&mut session, &group(None), "HELLO 3").starts_with("%5\r\n"));
        assert!(asked(&mut session, &group(None), "SENTINEL master g").starts_with('%'));
        assert!(asked(&mut session, &group(None), "HELLO 4").starts_with("-NOPROTO"));
    }
}
