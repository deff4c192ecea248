//! A client of the key-value service that keeps the retry contract.
//!
//! It has one command in flight. A command that may have been decided is tried again **with the same sequence number**,
//! at another replica if need be, so it is applied once; when the patience is over and an earlier try may have been
//! decided, the end is [`ClientError::Unknown`] and nothing else.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::op::{Answer, KEY_BYTES_MAX, Op};
use super::wire::{Frames, GREETING, Request, Response};
use crate::config::Config;

/// Longest response.
const RESPONSE_BYTES_MAX: usize = 128 << 20;
/// Between two tries when nobody leads.
const PAUSE: Duration = Duration::from_micros(200);

/// How patient a client is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientOptions {
    /// For one command or read: after so long no further try is begun.
    pub patience: Duration,
    /// For one try at one replica, connecting included.
    pub attempt: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(5),
            attempt: Duration::from_millis(250),
        }
    }
}

/// Why a command or read did not come to a good end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// It may or may not have been decided, and may still be.
    #[error("the outcome is not known: {last}")]
    Unknown {
        /// What the last try said.
        last: String,
    },
    /// Nobody took it: it was not and will not be decided.
    #[error("no replica took it: {last}")]
    Unavailable {
        /// What the last try said.
        last: String,
    },
    /// It is longer than the service takes.
    #[error("a command of {bytes} bytes; at most {limit} are allowed")]
    TooLarge {
        /// Its bytes.
        bytes: usize,
        /// The limit.
        limit: u64,
    },
    /// A key is too long.
    #[error("a key of {bytes} bytes; at most {KEY_BYTES_MAX} are allowed")]
    KeyTooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// Another program uses this client's number, and went on to a later command.
    #[error("another program uses the client number {client}")]
    Superseded {
        /// This client's number.
        client: u64,
    },
    /// There is nobody to ask.
    #[error("no replica has a client address")]
    NoReplica,
    /// There is no random source for the client's number.
    #[error("the system's random source: {0}")]
    Random(io::Error),
}

/// A client with a session of its own.
#[derive(Debug)]
pub struct Client {
    replicas: Vec<(u8, SocketAddr)>,
    options: ClientOptions,
    client: u64,
    sequence: u64,
    /// Which of `replicas` is asked.
    at: usize,
    connection: Option<Connection>,
    command: Vec<u8>,
}

/// What a try came to.
enum Tried<T> {
    Done(T),
    /// Not decided, here and now; who may lead instead.
    Elsewhere(Option<u8>, String),
    /// Not decided, for this replica is busy.
    Busy,
    /// Nobody knows.
    Unknown(String),
}

impl Client {
    /// A client of these replicas, each with its id and its client address.
    ///
    /// # Errors
    /// There are none, or no random source for the client's number.
    pub fn new(
        replicas: Vec<(u8, SocketAddr)>,
        options: ClientOptions,
    ) -> Result<Self, ClientError> {
        if replicas.is_empty() {
            return Err(ClientError::NoReplica);
        }
        let client = getrandom::u64().map_err(|e| ClientError::Random(e.into()))?;
        Ok(Self {
            replicas,
            options,
            client: client.max(1),
            sequence: 0,
            at: 0,
            connection: None,
            command: Vec::new(),
        })
    }

    /// A client of a configuration's members that serve clients.
    ///
    /// # Errors
    /// See [`new`](Self::new).
    pub fn of(config: &Config, options: ClientOptions) -> Result<Self, ClientError> {
        let members = config.members().iter();
        let replicas = members.filter_map(|m| m.client.map(|client| (m.id, client)));
        Self::new(replicas.collect(), options)
    }

    /// The number of its session.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.client
    }

    /// The replica that it asks, which is the leader after a success.
    #[must_use]
    pub fn replica(&self) -> u8 {
        self.replicas[self.at].0
    }

    /// Sets a value.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), ClientError> {
        self.run(Op::Put { key, value }).map(drop)
    }

    /// Removes a key; whether it was there.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn delete(&mut self, key: &[u8]) -> Result<bool, ClientError> {
        Ok(self.run(Op::Delete { key })? == Answer::Done)
    }

    /// Sets a value if it is `expected` (`None`: if there is none); whether it was.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn cas(
        &mut self,
        key: &[u8],
        expected: Option<&[u8]>,
        new: &[u8],
    ) -> Result<bool, ClientError> {
        Ok(self.run(Op::Cas { key, expected, new })? == Answer::Done)
    }

    /// Adds to a number; the sum, or `None` if the value is no number of eight bytes.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn add(&mut self, key: &[u8], delta: i64) -> Result<Option<i64>, ClientError> {
        match self.run(Op::Add { key, delta })? {
            Answer::Number(sum) => Ok(Some(sum)),
            _ => Ok(None),
        }
    }

    /// Runs one command.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn run(&mut self, op: Op<'_>) -> Result<Answer, ClientError> {
        check_key(op.key())?;
        self.sequence += 1;
        let mut command = std::mem::take(&mut self.command);
        command.clear();
        op.encode(&mut command);
        let request = Request::Command {
            client: self.client,
            sequence: self.sequence,
            command: &command,
        };
        let bytes = command.len();
        let client = self.client;
        let answer = self.until_done(request, false, |response| match response {
            Response::Decided(answer) => match Answer::decode(answer) {
                Some(answer) => Tried::Done(Ok(answer)),
                None => Tried::Unknown("an answer that makes no sense".into()),
            },
            Response::TooLarge { limit } => {
                Tried::Done(Err(ClientError::TooLarge { bytes, limit }))
            }
            Response::Superseded => Tried::Done(Err(ClientError::Superseded { client })),
            other => undecided(other),
        });
        self.command = command;
        answer?
    }

    /// Reads a value, linearizably: it is as new as anything that was acknowledged before.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`], or a key that is too long.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, ClientError> {
        check_key(key)?;
        self.until_done(Request::Get { key }, true, |response| match response {
            Response::Value(value) => Tried::Done(value.map(<[u8]>::to_vec)),
            other => undecided(other),
        })
    }

    /// Tries again, here and elsewhere, until there is an outcome or the patience is over. `read`: an unknown outcome
    /// does no harm.
    fn until_done<T>(
        &mut self,
        request: Request<'_>,
        read: bool,
        judge: impl Fn(Response<'_>) -> Tried<T>,
    ) -> Result<T, ClientError> {
        let begin = Instant::now();
        let mut may_be_decided = false;
        loop {
            // A try that is cut short would make unknown of what was refused before, so each has its full time.
            let last = match self.attempt(request, &judge) {
                Tried::Done(outcome) => return Ok(outcome),
                Tried::Elsewhere(hint, last) => {
                    let known = hint
                        .filter(|id| *id != self.replica())
                        .is_some_and(|id| self.go_to(id));
                    if !known {
                        self.go_on();
                        std::thread::sleep(PAUSE);
                    }
                    last
                }
                Tried::Busy => {
                    std::thread::sleep(PAUSE);
                    "overloaded".into()
                }
                Tried::Unknown(last) => {
                    may_be_decided |= !read;
                    self.go_on();
                    last
                }
            };
            if begin.elapsed() >= self.options.patience {
                return Err(match may_be_decided {
                    true => ClientError::Unknown { last },
                    false => ClientError::Unavailable { last },
                });
            }
        }
    }

    /// One try at the present replica.
    fn attempt<T>(
        &mut self,
        request: Request<'_>,
        judge: &impl Fn(Response<'_>) -> Tried<T>,
    ) -> Tried<T> {
        let (id, address) = self.replicas[self.at];
        let patience = self.options.attempt;
        let deadline = Instant::now() + patience;
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => match Connection::open(address, patience) {
                Ok(connection) => none.insert(connection),
                Err(error) => {
                    let last = format!("replica {id} at {address}: {error}");
                    return Tried::Elsewhere(None, last);
                }
            },
        };
        let answered = connection.send(request).and_then(|number| {
            loop {
                let (answered, response) = connection.receive(deadline)?;
                if answered == number {
                    return Ok(judge(response));
                }
            }
        });
        answered.unwrap_or_else(|error| {
            // Responses to this request must not be taken for those of a later one, nor waited for.
            self.connection = None;
            Tried::Unknown(format!("replica {id} at {address}: {error}"))
        })
    }

    /// Turns to the replica `id`, if it is known.
    fn go_to(&mut self, id: u8) -> bool {
        let found = self.replicas.iter().position(|(other, _)| *other == id);
        if let Some(at) = found
            && at != self.at
        {
            self.at = at;
            self.connection = None;
        }
        found.is_some()
    }

    /// Turns to the next replica.
    fn go_on(&mut self) {
        if self.replicas.len() > 1 {
            self.at = (self.at + 1) % self.replicas.len();
            self.connection = None;
        }
    }
}

fn check_key(key: &[u8]) -> Result<(), ClientError> {
    let bytes = key.len();
    match bytes <= KEY_BYTES_MAX {
        true => Ok(()),
        false => Err(ClientError::KeyTooLong { bytes }),
    }
}

/// The responses that mean the same for commands and reads.
fn undecided<T>(response: Response<'_>) -> Tried<T> {
    match response {
        Response::NotLeader { hint } => Tried::Elsewhere(hint, "it does not lead".into()),
        Response::Stopped => Tried::Elsewhere(None, "it has stopped".into()),
        Response::Overloaded => Tried::Busy,
        Response::Unknown => Tried::Unknown("it does not know the outcome".into()),
        other => Tried::Unknown(format!("an answer that does not fit: {other:?}")),
    }
}

/// One connection to one replica, for whoever wants to see single tries.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    frames: Frames,
    out: Vec<u8>,
    number: u64,
    buffer: Vec<u8>,
}

/// Bytes of one read.
const READ_BYTES: usize = 16 << 10;

impl Connection {
    /// Connects and greets.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn open(address: SocketAddr, patience: Duration) -> io::Result<Self> {
        let patience = patience.max(Duration::from_millis(1));
        let mut stream = TcpStream::connect_timeout(&address, patience)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(patience))?;
        stream.write_all(&GREETING)?;
        Ok(Self {
            stream,
            frames: Frames::new(RESPONSE_BYTES_MAX),
            out: Vec::new(),
            number: 0,
            buffer: vec![0; READ_BYTES],
        })
    }

    /// Sends a request; the response has the number that is given here.
    ///
    /// # Errors
    /// What the operating system says; whether the replica has it is not known then.
    pub fn send(&mut self, request: Request<'_>) -> io::Result<u64> {
        self.number += 1;
        self.out.clear();
        request.encode(self.number, &mut self.out);
        self.stream.write_all(&self.out)?;
        Ok(self.number)
    }

    /// The next response, waited for until `deadline`.
    ///
    /// # Errors
    /// It did not come in time, the connection is gone, or what came makes no sense.
    pub fn receive(&mut self, deadline: Instant) -> io::Result<(u64, Response<'_>)> {
        let nonsense = |what: String| io::Error::new(ErrorKind::InvalidData, what);
        loop {
            let has_frame = self
                .frames
                .has_next()
                .map_err(|e| nonsense(e.to_string()))?;
            if has_frame {
                break;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ErrorKind::TimedOut.into());
            }
            // A time-out of nothing would be none at all.
            let left = left.max(Duration::from_micros(1));
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut self.buffer) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.frames.push(&self.buffer[..n]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    return Err(ErrorKind::TimedOut.into());
                }
                Err(e) => return Err(e),
            }
        }
        let frame = self.frames.next().ok().flatten().expect("it was there");
        Response::decode(frame).ok_or_else(|| nonsense("a frame that is no response".into()))
    }
}
