//! What can be wrong with a configuration.

use std::fmt;

/// A configuration that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{file}: {reason}")]
    Unreadable {
        /// Its path.
        file: String,
        /// Why, and what to do.
        reason: String,
    },
    /// The file is not TOML.
    #[error("{place}: not TOML: {message}")]
    Syntax {
        /// Where.
        place: Place,
        /// What the parser says.
        message: String,
    },
    /// A key has a wrong value, is missing, or should not be there.
    #[error(transparent)]
    Key(#[from] Box<KeyError>),
}

impl From<KeyError> for ConfigError {
    fn from(error: KeyError) -> Self {
        Self::Key(Box::new(error))
    }
}

/// What is wrong with one key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyError {
    /// Where it stands, if it came from a file.
    pub place: Option<Place>,
    /// The key, such as `replicas[1].id`.
    pub key: String,
    /// Its value as it would stand in the file; `None` if it has none, or one that must not be shown.
    pub value: Option<String>,
    /// What is wrong with it and what was expected.
    pub expected: String,
}

impl KeyError {
    pub(super) fn new(
        key: impl Into<String>,
        value: impl Into<Option<String>>,
        expected: impl Into<String>,
    ) -> Self {
        Self {
            place: None,
            key: key.into(),
            value: value.into(),
            expected: expected.into(),
        }
    }
}

impl fmt::Display for KeyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        f.write_str(&self.key)?;
        if let Some(value) = &self.value {
            write!(f, " = {value}")?;
        }
        write!(f, ": {}", self.expected)
    }
}

impl std::error::Error for KeyError {}

/// A place in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    /// The file's path.
    pub file: String,
    /// The line, from 1; `None` for what is not there.
    pub line: Option<usize>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        match self.line {
            Some(line) => write!(f, ":{line}"),
            None => Ok(()),
        }
    }
}
