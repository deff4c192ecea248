//! The key that the members of a cluster share.
//!
//! As text it is `hex:` or `base64:` and the bytes so written, or anything else and then taken as it is. It should come
//! from a random source: whoever records a handshake can try guesses on it.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use data_encoding::{BASE64, HEXLOWER_PERMISSIVE};
use zeroize::Zeroizing;

/// A pre-shared key: at least [`Psk::BYTES_MIN`] bytes, wiped when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Psk(Zeroizing<Vec<u8>>);

impl Psk {
    /// Fewest bytes of a key.
    pub const BYTES_MIN: usize = 16;
    /// Most bytes of a key.
    pub const BYTES_MAX: usize = 1024;

    /// A key of these bytes.
    ///
    /// # Errors
    /// What is wrong with the number of them.
    pub fn new(bytes: &[u8]) -> Result<Self, String> {
        if (Self::BYTES_MIN..=Self::BYTES_MAX).contains(&bytes.len()) {
            return Ok(Self(Zeroizing::new(bytes.to_vec())));
        }
        Err(format!(
            "a key of {} bytes; expected {} to {}, such as base64: and what `head -c 32 /dev/urandom | base64` prints",
            bytes.len(),
            Self::BYTES_MIN,
            Self::BYTES_MAX
        ))
    }

    /// The key that a text stands for.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_text(text: &[u8]) -> Result<Self, String> {
        let (bytes, form) = if let Some(hex) = text.strip_prefix(b"hex:") {
            (HEXLOWER_PERMISSIVE.decode(hex), "hex")
        } else if let Some(base64) = text.strip_prefix(b"base64:") {
            (BASE64.decode(base64), "base64")
        } else {
            return Self::new(text);
        };
        // The decoder's own message would quote the key.
        let bytes = Zeroizing::new(bytes.map_err(|_| {
            format!("not {form} after the prefix {form}:; expected whole bytes in {form}, padded, without blanks")
        })?);
        Self::new(&bytes)
    }

    /// The key in a file: its text without the end of its line.
    ///
    /// # Errors
    /// Why not, the file named: it cannot be read, other users can, or what is in it is no key.
    pub fn from_file(path: &Path) -> Result<Self, String> {
        let name = path.display();
        let file = File::open(path).map_err(|error| format!("cannot open {name}: {error}"))?;
        refuse_if_shared(&file, path)?;
        let mut text = Zeroizing::new(Vec::with_capacity(FILE_BYTES_MAX + 1));
        file.take(FILE_BYTES_MAX as u64 + 1)
            .read_to_end(&mut text)
            .map_err(|error| format!("cannot read {name}: {error}"))?;
        if text.len() > FILE_BYTES_MAX {
            return Err(format!(
                "{name} has more than {FILE_BYTES_MAX} bytes; expected a key and no more"
            ));
        }
        let end = text.strip_suffix(b"\n").unwrap_or(&text);
        let end = end.strip_suffix(b"\r").unwrap_or(end);
        Self::from_text(end).map_err(|wrong| format!("{name} holds {wrong}"))
    }

    /// The secret itself.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A key written in hex, its prefix and a little more.
const FILE_BYTES_MAX: usize = 2 * Psk::BYTES_MAX + 16;

/// Asks the open file and not its path, so that nobody can exchange it in between.
pub(super) fn refuse_if_shared(file: &File, path: &Path) -> Result<(), String> {
    const OTHERS: u32 = 0o007;
    let data = file
        .metadata()
        .map_err(|error| format!("cannot ask for the mode of {}: {error}", path.display()))?;
    let mode = data.permissions().mode() & 0o7777;
    if data.is_file() && mode & OTHERS != 0 {
        return Err(format!(
            "{} holds a key and has mode {mode:04o}, open to every user (owner {}); \
             expected none for others: chmod o= {}",
            path.display(),
            data.uid(),
            path.display()
        ));
    }
    Ok(())
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psk(not shown)")
    }
}
