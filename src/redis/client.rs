//! A small blocking client of Redis, for measurements: nothing between them and the socket.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// What a server answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// A status or a string.
    Text(Vec<u8>),
    /// A number.
    Integer(i64),
    /// A refusal.
    Error(String),
    /// Several.
    Array(Vec<Reply>),
    /// Nothing is there.
    Nothing,
}

impl Reply {
    /// A text as such.
    pub(crate) fn text(&self) -> Option<String> {
        match self {
            Self::Text(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        }
    }
}

/// One connection.
pub(crate) struct Client {
    stream: TcpStream,
    out: Vec<u8>,
    input: Vec<u8>,
    /// Bytes of `input` that were taken.
    taken: usize,
}

/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;

impl Client {
    /// Connects; no wait is longer than `patience`.
    pub(crate) fn connect(address: SocketAddr, patience: Duration) -> std::io::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Self {
            stream,
            out: Vec::new(),
            input: Vec::new(),
            taken: 0,
        })
    }

    /// Adds a command to what is to be sent.
    pub(crate) fn push(&mut self, arguments: &[&[u8]]) {
        let out = &mut self.out;
        write!(out, "*{}\r\n", arguments.len()).expect("a vector grows");
        for argument in arguments {
            write!(out, "${}\r\n", argument.len()).expect("a vector grows");
            out.extend_from_slice(argument);
            out.extend_from_slice(b"\r\n");
        }
    }

    /// Sends what was added.
    pub(crate) fn flush(&mut self) -> std::io::Result<()> {
        let sent = self.stream.write_all(&self.out);
        self.out.clear();
        sent
    }

    /// Waits for one reply.
    pub(crate) fn reply(&mut self) -> std::io::Result<Reply> {
        loop {
            let mut at = self.taken;
            if let Some(reply) = parse(&self.input, &mut at)? {
                self.taken = at;
                if self.taken == self.input.len() {
                    self.input.clear();
                    self.taken = 0;
                }
                return Ok(reply);
            }
            self.input.drain(..self.taken);
            self.taken = 0;
            let begin = self.input.len();
            self.input.resize(begin + READ_BYTES, 0);
            let read = self.stream.read(&mut self.input[begin..]);
            self.input
                .truncate(begin + read.as_ref().copied().unwrap_or(0));
            match read {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Sends a command and waits for its reply.
    pub(crate) fn call(&mut self, arguments: &[&[u8]]) -> std::io::Result<Reply> {
        self.push(arguments);
        self.flush()?;
        self.reply()
    }

    /// The same where a refusal is a failure.
    pub(crate) fn must(&mut self, arguments: &[&[u8]]) -> Result<Reply> {
        let name = String::from_utf8_lossy(arguments[0]).into_owned();
        match self.call(arguments).with_context(|| name.clone())? {
            Reply::Error(why) => bail!("{name}: {why}"),
            reply => Ok(reply),
        }
    }

    /// A value of a section of INFO.
    pub(crate) fn info(&mut self, section: &str, field: &str) -> Result<Option<String>> {
        let reply = self.must(&[b"INFO", section.as_bytes()])?;
        let text = reply.text().context("INFO is a text")?;
        let found = text.lines().find_map(|line| {
            line.strip_prefix(field)?
                .strip_prefix(':')
                .map(str::to_owned)
        });
        Ok(found)
    }
}

fn bad() -> std::io::Error {
    std::io::Error::new(ErrorKind::InvalidData, "this is no reply of Redis")
}

/// A line from `at` on, without its end; `None` if its end is not there yet.
fn line<'a>(input: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let rest = &input[*at..];
    let end = rest.windows(2).position(|two| two == b"\r\n")?;
    *at += end + 2;
    Some(&rest[..end])
}

fn parse(input: &[u8], at: &mut usize) -> std::io::Result<Option<Reply>> {
    let Some(head) = line(input, at) else {
        return Ok(None);
    };
    let (mark, rest) = head.split_first().ok_or_else(bad)?;
    let text = || str::from_utf8(rest).map_err(|_| bad());
    let number = || text()?.parse::<i64>().map_err(|_| bad());
    Ok(Some(match mark {
        b'+' => Reply::Text(rest.to_vec()),
        b'-' => Reply::Error(text()?.to_owned()),
        b':' => Reply::Integer(number()?),
        b'$' => match usize::try_from(number()?) {
            Err(_) => Reply::Nothing,
            Ok(len) => {
                let Some(bytes) = input.get(*at..*at + len + 2) else {
                    return Ok(None);
                };
                *at += len + 2;
                Reply::Text(bytes[..len].to_vec())
            }
        },
        b'*' => match usize::try_from(number()?) {
            Err(_) => Reply::Nothing,
            Ok(len) => {
                let mut replies = Vec::new();
                for _ in 0..len {
                    match parse(input, at)? {
                        Some(reply) => replies.push(reply),
                        None => return Ok(None),
                    }
                }
                Reply::Array(replies)
            }
        },
        _ => return Err(bad()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_are_found_whole_and_in_every_part() {
        let bytes = b"*5\r\n+OK\r\n:-7\r\n$3\r\na\r\n\r\n$-1\r\n*1\r\n-ERR no\r\n";
        let wanted = Reply::Array(vec![
            Reply::Text(b"OK".to_vec()),
            Reply::Integer(-7),
            Reply::Text(b"a\r\n".to_vec()),
            Reply::Nothing,
            Reply::Array(vec![Reply::Error("ERR no".into())]),
        ]);
        let mut at = 0;
        assert_eq!(parse(bytes, &mut at).expect("sound"), Some(wanted));
        assert_eq!(at, bytes.len());
        for len in 0..bytes.len() {
            assert_eq!(parse(&bytes[..len], &mut 0).expect("sound"), None, "{len}");
        }
        assert!(parse(b"x\r\n", &mut 0).is_err() && parse(b":x\r\n", &mut 0).is_err());
    }
}
