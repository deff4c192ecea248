//! The local redis-server's primary: the master side of Redis's replication, for one replica on this host.
//!
//! A dataset first (`+FULLRESYNC` and an RDB file), then the decided bytes; or `+CONTINUE` where the connection broke.
//! Offsets are places of mu's stream, so the server's own offset says how far it is. Nothing is sent that is not of the
//! stream, for that would move the offset.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::feed::{Base, Resume};
use crate::module;
use crate::node::{self, Mode, Node};
use crate::resp::{self, Next};

/// So long and so much is listened to before it is known that it is the local server.
const STRANGER: Duration = Duration::from_secs(5);
const STRANGER_BYTES: usize = 4096;

/// Serves the local server for ever, one connection at a time.
pub(crate) fn run(node: &'static Node, listener: &TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        let _ = stream.set_nodelay(true);
        // A server that goes away comes back.
        if let Err(error) = serve(node, stream) {
            tracing::info!(%error, "the local server's replication connection ended");
        }
        node.feed.detach();
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// One connection.
fn serve(node: &Node, mut stream: TcpStream) -> io::Result<()> {
    let mut known = false;
    let mut input = Vec::new();
    let since = Instant::now();
    let mut buffer = [0; 4096];
    loop {
        // One connection is served at a time, so a stranger must not keep it.
        let left = STRANGER.checked_sub(since.elapsed());
        if !known && (left.is_none() || input.len() > STRANGER_BYTES) {
            return Err(bad("it does not say who it is"));
        }
        stream.set_read_timeout(left.filter(|left| !known && !left.is_zero()))?;
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        input.extend_from_slice(&buffer[..n]);
        loop {
            // The server sends empty lines while it loads a dataset.
            let blank = input.iter().take_while(|byte| **byte == b'\n').count();
            input.drain(..blank);
            let (command, len) = match resp::next(&input) {
                Next::Command(command, len) => (command, len),
                Next::Part => break,
                Next::Bad => return Err(bad("no command of a replica")),
            };
            let Some((name, arguments)) = command.split_first() else {
                return Err(bad("an empty command"));
            };
            match (name.to_ascii_uppercase().as_slice(), arguments) {
                (b"PING", _) => stream.write_all(b"+PONG\r\n")?,
                (b"AUTH", [.., secret]) if *secret == node.setup.secret.as_bytes() => {
                    known = true;
                    stream.write_all(b"+OK\r\n")?;
                }
                _ if !known => {
                    stream.write_all(b"-NOAUTH this is for the local server\r\n")?;
                    return Err(bad("a stranger"));
                }
                (b"REPLCONF", [what, position, ..]) if what.eq_ignore_ascii_case(b"ack") => {
                    if let Some(position) = place(position) {
                        node.feed.acked(position);
                    }
                }
                (b"REPLCONF", _) => stream.write_all(b"+OK\r\n")?,
                (b"PSYNC", [id, position, ..]) => begin(node, &mut stream, id, position)?,
                _ => stream.write_all(b"-ERR unknown command\r\n")?,
            }
            input.drain(..len);
        }
    }
}

fn place(text: &[u8]) -> Option<u64> {
    str::from_utf8(text).ok()?.parse().ok()
}

/// Gives the server what it lacks.
fn begin(node: &Node, stream: &mut TcpStream, id: &[u8], next: &[u8]) -> io::Result<()> {
    node.feed.wait_until_ready();
    if node.mode() == Mode::Leader {
        return Err(bad("this node's server is a primary"));
    }
    let id = String::from_utf8_lossy(id);
    // It asks for the next byte, counted from 1.
    let has = place(next).map_or(0, |next| next.saturating_sub(1));
    let ours = node.feed.stream_id();
    let from = match node.feed.resume(&id, has) {
        Resume::Continue => {
            stream.write_all(format!("+CONTINUE {ours}\r\n").as_bytes())?;
            has
        }
        Resume::Full(base) => {
            full(stream, &ours, &base)?;
            base.position
        }
        Resume::Lost => node::end("the local server has lost its dataset"),
    };
    if !node.feed.attach(&ours, stream.try_clone()?, from) {
        return Err(bad("another dataset came meanwhile"));
    }
    node.handle.wake();
    Ok(())
}

fn full(stream: &mut TcpStream, ours: &str, base: &Base) -> io::Result<()> {
    // Users first: what the stream says of them comes later.
    if !base.users.is_empty()
        && let Err(why) = module::set_users(&base.users)
    {
        node::end(&format!("the users of the dataset cannot be set: {why}"));
    }
    let head = format!(
        "+FULLRESYNC {ours} {}\r\n${}\r\n",
        base.position,
        base.rdb.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&base.rdb)
}
