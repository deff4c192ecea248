//! Asking a running replica how it is.

use std::io::{self, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::frame::Reader;
use super::handshake::{Authenticated, Dialer, Identity, Refused};
use super::limits::{FRAME_BYTES_MAX, HANDSHAKE_FRAME_BYTES_MAX, HANDSHAKE_LIMIT};
use super::refusal::Refusal;
use super::session::Kind;
use super::wire::{NO_ID, NONCE_BYTES, Purpose};
use crate::config::Psk;

/// A status that could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueryError {
    /// Nobody listens there.
    #[error("cannot connect to {address}: {source}; is the replica running?")]
    Unreachable {
        /// The replica's control address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The connection broke, or the replica did not answer in time.
    #[error("{address} does not answer: {source}")]
    Lost {
        /// The replica's control address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The replica refused, or is not what it should be.
    #[error("{address}: {refusal}")]
    Refused {
        /// The replica's control address.
        address: SocketAddr,
        /// Why.
        refusal: Refusal,
    },
}

/// Asks the replica at a control address for its [`set_status`](super::Mesh::set_status). Blocks for at most
/// [`HANDSHAKE_LIMIT`] to connect and as long again for the answer.
///
/// # Errors
/// It cannot be reached, does not answer, or one of the two refuses the other.
pub fn query_status(address: SocketAddr, psk: &Psk, cluster: &str) -> Result<Vec<u8>, QueryError> {
    let unreachable = |source| QueryError::Unreachable { address, source };
    let stream = TcpStream::connect_timeout(&address, HANDSHAKE_LIMIT).map_err(unreachable)?;
    let asked = Query::new(stream).and_then(|query| query.run(psk, cluster));
    asked.map_err(|failure| match failure {
        Failure::Lost(source) => QueryError::Lost { address, source },
        Failure::Refused(refusal) => QueryError::Refused { address, refusal },
    })
}

enum Failure {
    Lost(io::Error),
    Refused(Refusal),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused.refusal)
    }
}

struct Query {
    stream: TcpStream,
    reader: Reader,
    deadline: Instant,
}

impl Query {
    fn new(stream: TcpStream) -> Result<Self, Failure> {
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(HANDSHAKE_LIMIT))?;
        Ok(Self {
            stream,
            reader: Reader::new(HANDSHAKE_FRAME_BYTES_MAX),
            deadline: Instant::now() + HANDSHAKE_LIMIT,
        })
    }

    fn run(mut self, psk: &Psk, cluster: &str) -> Result<Vec<u8>, Failure> {
        let mut with = self.authenticate(&Identity::of_client(psk, cluster))?;
        self.reader.raise(FRAME_BYTES_MAX);
        match with.opener.open(self.frame()?) {
            Ok((Kind::Status, status)) => Ok(status.to_vec()),
            Ok(_) => Err(Failure::Refused(Refusal::Malformed)),
            Err(refusal) => Err(Failure::Refused(refusal)),
        }
    }

    fn authenticate(&mut self, me: &Identity) -> Result<Authenticated, Failure> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(io::Error::from)?;
        let mut out = Vec::new();
        let mut dialer = Dialer::start(me, Purpose::Status, NO_ID, nonce, &mut out);
        loop {
            self.stream.write_all(&out)?;
            out.clear();
            if let Some(authenticated) = dialer.on_frame(me, self.frame()?, &mut out)? {
                return Ok(authenticated);
            }
        }
    }

    fn frame(&mut self) -> Result<&[u8], Failure> {
        while !self
            .reader
            .has_frame()
            .map_err(|_| Failure::Refused(Refusal::FrameTooBig))?
        {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::from(ErrorKind::TimedOut).into());
            }
            // A time-out of nothing would be none at all.
            self.stream
                .set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.reader.fill(&mut self.stream) {
                Ok(0) => return Err(io::Error::from(ErrorKind::UnexpectedEof).into()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(io::Error::from(ErrorKind::TimedOut).into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        let frame = self.reader.next().ok().flatten();
        Ok(frame.expect("it was there"))
    }
}
