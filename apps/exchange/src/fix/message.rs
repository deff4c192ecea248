//! FIX messages: `tag=value` fields, each ended by the byte 1, within a frame of length and checksum.

use std::fmt::Write as _;

/// What ends a field.
pub const SOH: u8 = 1;
/// The version.
pub const BEGIN: &[u8] = b"8=FIX.4.4\x01";
/// Bytes of the longest message.
pub const MESSAGE_BYTES_MAX: usize = 8 << 10;
/// Digits of a length, at most.
const LENGTH_DIGITS_MAX: usize = 5;
/// `10=nnn` and its end.
const TRAILER_BYTES: usize = 7;

/// Bytes that are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another beginning. Nothing that follows can be told.
    #[error("it does not begin with 8=FIX.4.4 and 9=LENGTH")]
    Begin,
    /// Too long.
    #[error("a message of {0} bytes; at most {MESSAGE_BYTES_MAX} are read")]
    TooLong(usize),
    /// No checksum where the length says that it stands.
    #[error("BodyLength(9) does not lead to CheckSum(10)")]
    Length,
    /// The frame is one, its bytes are not as they were sent.
    #[error("CheckSum(10) says {said:03}, the bytes {found:03}")]
    CheckSum {
        /// As the message has it.
        said: u8,
        /// As it should be.
        found: u8,
    },
}

/// Takes frames out of a stream of bytes.
#[derive(Debug, Default)]
pub struct Frames {
    bytes: Vec<u8>,
    /// What lies before it was taken.
    taken: usize,
}

impl Frames {
    /// Bytes that came.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.taken == self.bytes.len() {
            self.bytes.clear();
            self.taken = 0;
        } else if self.taken >= MESSAGE_BYTES_MAX {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// What came and was not taken.
    #[must_use]
    pub fn waiting(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    /// Takes so many bytes, whatever they are.
    pub fn skip(&mut self, count: usize) {
        self.taken = (self.taken + count).min(self.bytes.len());
    }

    /// The next whole message, `None` before it is there. After [`FrameError::CheckSum`] the stream goes on behind the
    /// frame; after the others it makes no sense any more.
    ///
    /// # Errors
    /// The bytes are no frame.
    #[allow(clippy::should_implement_trait, reason = "an iterator could not lend")]
    pub fn next(&mut self) -> Result<Option<Message<'_>>, FrameError> {
        let start = self.taken;
        let waiting = &self.bytes[start..];
        let known = waiting.len().min(BEGIN.len());
        if waiting[..known] != BEGIN[..known] {
            return Err(FrameError::Begin);
        }
        let Some((head, body)) = head(&waiting[known..])? else {
            return Ok(None);
        };
        let head = BEGIN.len() + head;
        let len = head + body + TRAILER_BYTES;
        if len > MESSAGE_BYTES_MAX {
            return Err(FrameError::TooLong(len));
        }
        if waiting.len() < len {
            return Ok(None);
        }
        let (summed, trailer) = waiting[..len].split_at(head + body);
        let said = match trailer {
            [b'1', b'0', b'=', digits @ .., SOH] if summed.ends_with(&[SOH]) => digits,
            _ => return Err(FrameError::Length),
        };
        let said = number(said).and_then(|said| u8::try_from(said).ok());
        let said = said.ok_or(FrameError::Length)?;
        let found = checksum(summed);
        self.taken += len;
        if said != found {
            return Err(FrameError::CheckSum { said, found });
        }
        Ok(Some(Message {
            body: &self.bytes[start + head..start + head + body],
        }))
    }
}

/// After the beginning: bytes of the length field, and what it says; `None` before they are there.
fn head(bytes: &[u8]) -> Result<Option<(usize, usize)>, FrameError> {
    let known = bytes.len().min(2);
    if bytes[..known] != b"9="[..known] {
        return Err(FrameError::Begin);
    }
    let digits = &bytes[known..];
    match digits
        .iter()
        .take(LENGTH_DIGITS_MAX + 1)
        .position(|byte| *byte == SOH)
    {
        Some(end) => match number(&digits[..end]) {
            Some(body) => Ok(Some((2 + end + 1, body as usize))),
            None => Err(FrameError::Begin),
        },
        None if digits.len() > LENGTH_DIGITS_MAX => Err(FrameError::Begin),
        None => Ok(None),
    }
}

fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

/// A decimal number without sign, of at most 18 digits.
#[must_use]
pub fn number(digits: &[u8]) -> Option<u64> {
    if !(1..=18).contains(&digits.len()) {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, byte| {
        byte.is_ascii_digit()
            .then(|| number * 10 + u64::from(byte - b'0'))
    })
}

/// A message that came. The first field of its body is its type.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    body: &'a [u8],
}

impl<'a> Message<'a> {
    /// The first value of a tag, not empty.
    #[must_use]
    pub fn get(&self, tag: u32) -> Option<&'a [u8]> {
        self.fields()
            .find(|(found, _)| *found == tag)
            .map(|(_, value)| value)
    }

    /// A value as a number.
    #[must_use]
    pub fn number(&self, tag: u32) -> Option<u64> {
        number(self.get(tag)?)
    }

    /// Whether a flag is set.
    #[must_use]
    pub fn flag(&self, tag: u32) -> bool {
        self.get(tag) == Some(b"Y")
    }

    /// The type; nothing if the first field is another.
    #[must_use]
    pub fn kind(&self) -> &'a [u8] {
        match self.fields().next() {
            Some((35, kind)) => kind,
            _ => b"",
        }
    }

    /// Whether every field is a tag and a value.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.raw().all(|field| split(field).is_some())
    }

    fn raw(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let body = self.body.strip_suffix(&[SOH]).unwrap_or(self.body);
        body.split(|byte| *byte == SOH)
    }

    fn fields(&self) -> impl Iterator<Item = (u32, &'a [u8])> + use<'a> {
        self.raw().filter_map(split)
    }
}

fn split(field: &[u8]) -> Option<(u32, &[u8])> {
    let at = field.iter().position(|byte| *byte == b'=')?;
    let tag = u32::try_from(number(&field[..at])?).ok()?;
    (tag > 0 && at + 1 < field.len()).then(|| (tag, &field[at + 1..]))
}

/// Fields of a message to be sent, in their order, without header and trailer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Body(String);

impl Body {
    /// With another field. What would end it early is left out.
    #[must_use]
    pub fn with(mut self, tag: u32, value: impl std::fmt::Display) -> Self {
        let start = self.0.len();
        write!(self.0, "{tag}={value}").expect("a string");
        if self.0[start..].contains('\x01') {
            let clean = self.0[start..].replace('\x01', " ");
            self.0.replace_range(start.., &clean);
        }
        self.0.push('\x01');
        self
    }
}

/// The header of a message to be sent.
#[derive(Clone, Copy, Debug)]
pub struct Header<'a> {
    /// Type.
    pub kind: &'a str,
    /// Who sends it.
    pub from: &'a str,
    /// Who receives it.
    pub to: &'a str,
    /// Its number.
    pub number: u64,
    /// When.
    pub time_ns: u64,
    /// If it was sent before: when that was.
    pub first_sent_ns: Option<u64>,
}

/// Appends a whole message.
pub fn write(header: &Header<'_>, body: &Body, out: &mut Vec<u8>) {
    let mut head = Body::default()
        .with(35, header.kind)
        .with(49, header.from)
        .with(56, header.to)
        .with(34, header.number);
    if header.first_sent_ns.is_some() {
        head = head.with(43, "Y");
    }
    head = head.with(52, super::time::text(header.time_ns));
    if let Some(first) = header.first_sent_ns {
        head = head.with(122, super::time::text(first));
    }
    let start = out.len();
    out.extend_from_slice(BEGIN);
    out.extend_from_slice(format!("9={}\x01", head.0.len() + body.0.len()).as_bytes());
    out.extend_from_slice(head.0.as_bytes());
    out.extend_from_slice(body.0.as_bytes());
    let sum = checksum(&out[start..]);
    out.extend_from_slice(format!("10={sum:03}\x01").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> Vec<u8> {
        let header = Header {
            kind: "D",
            from: "A",
            to: "MU",
            number: 7,
            time_ns: 0,
            first_sent_ns: Some(0),
        };
        let mut out = Vec::new();
        write(
            &header,
            &Body::default().with(58, "x\x0134=9").with(11, "c"),
            &mut out,
        );
        out
    }

    #[test]
    fn a_message_comes_back_whole_or_in_pieces() {
        let bytes = message();
        for cut in 0..bytes.len() {
            let mut frames = Frames::default();
            frames.push(&bytes[..cut]);
            assert!(matches!(frames.next(), Ok(None)), "{cut} bytes");
            frames.push(&bytes[cut..]);
            let message = frames.next().expect("a frame").expect("whole");
            assert_eq!((message.kind(), message.number(34)), (&b"D"[..], Some(7)));
            assert_eq!(
                message.get(58),
                Some(&b"x 34=9"[..]),
                "a value ends no field"
            );
            assert!(message.flag(43) && message.is_sound() && message.get(9999).is_none());
            assert!(matches!(frames.next(), Ok(None)));
        }
    }

    #[test]
    fn a_damaged_message_is_named_and_the_next_one_is_found() {
        let mut bytes = message();
        bytes[30] ^= 1;
        bytes.extend(message());
        let mut frames = Frames::default();
        frames.push(&bytes);
        assert!(matches!(frames.next(), Err(FrameError::CheckSum { .. })));
        assert!(frames.next().expect("a frame").is_some());
    }

    #[test]
    fn what_is_no_frame_is_refused_at_once() {
        for (bytes, error) in [
            (&b"GET / HTTP/1.1"[..], FrameError::Begin),
            (b"8=FIX.4.2\x019=5\x01", FrameError::Begin),
            (b"8=FIX.4.4\x0135=A\x01", FrameError::Begin),
            (b"8=FIX.4.4\x019=-5\x01", FrameError::Begin),
            (b"8=FIX.4.4\x019=1234567", FrameError::Begin),
            (b"8=FIX.4.4\x019=99999\x01", FrameError::TooLong(100_024)),
            (
                b"8=FIX.4.4\x019=5\x0135=A\x0199=000\x01",
                FrameError::Length,
            ),
            (
                b"8=FIX.4.4\x019=5\x0135=A\x0110=999\x01",
                FrameError::Length,
            ),
        ] {
            let mut frames = Frames::default();
            frames.push(bytes);
            assert_eq!(frames.next().err(), Some(error), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_field_without_tag_or_value_is_not_sound() {
        for (body, sound) in [
            (&b"35=D\x0111=a\x01"[..], true),
            (b"35=D\x0111=\x01", false),
            (b"35=D\x01x=1\x01", false),
            (b"35=D\x01\x01", false),
            (b"35=D\x010=1\x01", false),
        ] {
            assert_eq!(
                Message { body }.is_sound(),
                sound,
                "{}",
                body.escape_ascii()
            );
        }
    }
}
