//! Messages of the control socket: six little words each, descriptors beside them.

/// Words of a message.
pub(super) const WORDS: usize = 6;
/// Bytes of a message.
pub(super) const BYTES: usize = WORDS * 8;
/// Descriptors of a message.
pub(super) const MAX_FDS: usize = 3;

/// A message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Message {
    /// Initiator: who I am and which layout I mean.
    Hello { layout: u64, node: u64 },
    /// Target: you are in. With the control segment, the lane and, if there is one, the lifeline; `memories`
    /// announcements follow.
    Welcome { node: u64, lane: u64, memories: u64 },
    /// Target: you are not in; the reason is the layout this side has.
    Refused { layout: u64 },
    /// Target: a memory. With its file.
    Memory {
        id: u32,
        bytes: u64,
        page_bytes: u64,
    },
    /// Initiator: here is a userfaultfd over my mappings.
    Fence,
    /// Initiator: I mapped that memory there; 0 bytes if it cannot be protected.
    Mapped { id: u32, base: u64, bytes: u64 },
    /// Target: you were fenced; let go of this view.
    Fenced,
    /// Either: I close, and nothing of mine is under way.
    Bye,
}

const MAGIC: u64 = 0x6d75_7368_6d00_0000;

impl Message {
    pub(super) fn encode(self) -> [u8; BYTES] {
        let words: [u64; WORDS] = match self {
            Self::Hello { layout, node } => [1, layout, node, 0, 0, 0],
            Self::Welcome {
                node,
                lane,
                memories,
            } => [2, node, lane, memories, 0, 0],
            Self::Refused { layout } => [3, layout, 0, 0, 0, 0],
            Self::Memory {
                id,
                bytes,
                page_bytes,
            } => [4, id.into(), bytes, page_bytes, 0, 0],
            Self::Fence => [5, 0, 0, 0, 0, 0],
            Self::Mapped { id, base, bytes } => [6, id.into(), base, bytes, 0, 0],
            Self::Fenced => [7, 0, 0, 0, 0, 0],
            Self::Bye => [8, 0, 0, 0, 0, 0],
        };
        let mut out = [0; BYTES];
        for (i, word) in words.into_iter().enumerate() {
            let word = if i == 0 { word | MAGIC } else { word };
            out[i * 8..][..8].copy_from_slice(&word.to_le_bytes());
        }
        out
    }

    /// `None` for anything that `encode` does not make.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; BYTES] = bytes.try_into().ok()?;
        let word =
            |i: usize| u64::from_le_bytes(bytes[i * 8..][..8].try_into().expect("eight bytes"));
        if word(0) & !0xff != MAGIC {
            return None;
        }
        let id = || u32::try_from(word(1)).ok();
        let message = match word(0) & 0xff {
            1 => Self::Hello {
                layout: word(1),
                node: word(2),
            },
            2 => Self::Welcome {
                node: word(1),
                lane: word(2),
                memories: word(3),
            },
            3 => Self::Refused { layout: word(1) },
            4 => Self::Memory {
                id: id()?,
                bytes: word(2),
                page_bytes: word(3),
            },
            5 => Self::Fence,
            6 => Self::Mapped {
                id: id()?,
                base: word(2),
                bytes: word(3),
            },
            7 => Self::Fenced,
            8 => Self::Bye,
            _ => return None,
        };
        (message.encode() == *bytes).then_some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decode_is_the_inverse_and_takes_nothing_else() {
        let all = [
            Message::Hello { layout: 1, node: 2 },
            Message::Welcome {
                node: 1,
                lane: 2,
                memories: 3,
            },
            Message::Refused { layout: 9 },
            Message::Memory {
                id: 3,
                bytes: 4096,
                page_bytes: 4096,
            },
            Message::Fence,
            Message::Mapped {
                id: 1,
                base: 2,
                bytes: 3,
            },
            Message::Fenced,
            Message::Bye,
        ];
        for message in all {
            let bytes = message.encode();
            assert_eq!(Message::decode(&bytes), Some(message));
            assert_eq!(Message::decode(&bytes[1..]), None);
            let mut bad = bytes;
            bad[0] = 99;
            assert_eq!(Message::decode(&bad), None);
            bad = bytes;
            bad[BYTES - 1] = 1;
            assert_eq!(Message::decode(&bad), None, "words that must be zero");
        }
    }
}
