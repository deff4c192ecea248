//! Reading a table of a file key by key, with the line of each.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Int};
use super::{ConfigError, KeyError, Place};

/// Longest value that an error quotes, in characters.
const QUOTE_CHARS_MAX: usize = 80;

/// A file's text, and the line of every key that was read so far.
pub(super) struct Source<'a> {
    name: &'a str,
    text: &'a str,
    lines: RefCell<BTreeMap<String, usize>>,
}

impl<'a> Source<'a> {
    pub(super) fn new(name: &'a str, text: &'a str) -> Self {
        Self {
            name,
            text,
            lines: RefCell::default(),
        }
    }

    /// The place of a byte of the text.
    pub(super) fn place(&self, at: Option<usize>) -> Place {
        let line = at.map(|at| {
            let before = self.text.bytes().take(at);
            1 + before.filter(|&byte| byte == b'\n').count()
        });
        Place {
            file: self.name.into(),
            line,
        }
    }

    /// The error with the place of its key.
    pub(super) fn locate(&self, error: KeyError) -> ConfigError {
        let line = self.lines.borrow().get(&error.key).copied();
        let place = error.place.unwrap_or(Place {
            file: self.name.into(),
            line,
        });
        ConfigError::from(KeyError {
            place: Some(place),
            ..error
        })
    }
}

/// A table of the file in which only known keys stand.
pub(super) struct Table<'a, 'i> {
    source: &'a Source<'a>,
    prefix: String,
    table: &'a DeTable<'i>,
}

impl<'a, 'i> Table<'a, 'i> {
    /// # Errors
    /// A key that is not `known`.
    pub(super) fn new(
        source: &'a Source<'a>,
        prefix: String,
        table: &'a DeTable<'i>,
        known: &[&str],
    ) -> Result<Self, KeyError> {
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let path = format!("{prefix}{name}");
            let place = source.place(Some(key.span().start));
            if !known.contains(&name) {
                // Its value is not shown: it may be the secret, under a mistyped name.
                let mut error = KeyError::new(shorten(&path), None, unknown(name, known));
                error.place = Some(place);
                return Err(error);
            }
            let line = source.place(Some(value.span().start)).line;
            source.lines.borrow_mut().insert(path, line.unwrap_or(1));
        }
        Ok(Self {
            source,
            prefix,
            table,
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn get(&self, name: &str) -> Option<&'a DeValue<'i>> {
        let entry = self
            .table
            .iter()
            .find(|(key, _)| key.get_ref().as_ref() == name);
        entry.map(|(_, value)| value.get_ref())
    }

    pub(super) fn wrong(&self, name: &str, expected: impl Into<String>) -> KeyError {
        let value = self.get(name).map(quote);
        KeyError::new(format!("{}{name}", self.prefix), value, expected)
    }

    pub(super) fn missing(&self, name: &str, expected: &str) -> KeyError {
        let expected = format!("missing; {expected}");
        KeyError::new(format!("{}{name}", self.prefix), None, expected)
    }

    pub(super) fn text(&self, name: &str, expected: &str) -> Result<Option<&'a str>, KeyError> {
        match self.get(name) {
            None => Ok(None),
            Some(DeValue::String(text)) => Ok(Some(text.as_ref())),
            Some(_) => Err(self.wrong(name, expected)),
        }
    }

    /// A number within its limits.
    pub(super) fn int(&self, name: &str, int: &Int) -> Result<Option<u64>, KeyError> {
        let value = match self.get(name) {
            None => return Ok(None),
            Some(DeValue::Integer(value)) => {
                u64::from_str_radix(value.as_str(), value.radix()).ok()
            }
            Some(_) => None,
        };
        let fitting = value.filter(|&value| int.holds(value));
        let fitting = fitting.ok_or_else(|| self.wrong(name, int.expected()))?;
        Ok(Some(fitting))
    }

    /// A number of a smaller type, whose limits keep it in there.
    pub(super) fn small<T: TryFrom<u64>>(
        &self,
        name: &str,
        int: &Int,
    ) -> Result<Option<T>, KeyError> {
        let value = self.int(name, int)?.map(T::try_from).transpose();
        value.map_err(|_| self.wrong(name, int.expected()))
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(
        &self,
        name: &str,
        choices: &[(&str, T)],
    ) -> Result<Option<T>, KeyError> {
        let words: Vec<String> = choices
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        let expected = format!("expected {}", words.join(" or "));
        let Some(text) = self.text(name, &expected)? else {
            return Ok(None);
        };
        let found = choices.iter().find(|(word, _)| *word == text);
        found
            .map(|&(_, value)| Some(value))
            .ok_or_else(|| self.wrong(name, expected))
    }

    pub(super) fn address(&self, name: &str) -> Result<Option<SocketAddr>, KeyError> {
        let expected =
            "expected an IP address and a port, such as \"10.0.0.1:7101\"; names are not looked up";
        let text = self.text(name, expected)?;
        let address = text.map(str::parse).transpose();
        address.map_err(|_| self.wrong(name, expected))
    }

    /// An array of tables.
    pub(super) fn tables(
        &self,
        name: &str,
        known: &[&str],
        expected: &str,
    ) -> Result<Vec<Table<'a, 'i>>, KeyError> {
        let array = match self.get(name) {
            None => return Err(self.missing(name, expected)),
            Some(DeValue::Array(array)) => array,
            Some(_) => return Err(self.wrong(name, expected)),
        };
        let mut tables = Vec::new();
        for (at, element) in array.iter().enumerate() {
            let path = format!("{}{name}[{at}]", self.prefix);
            let table = match Spanned::get_ref(element) {
                DeValue::Table(table) => table,
                other => return Err(KeyError::new(path, quote(other), expected)),
            };
            tables.push(Table::new(self.source, format!("{path}."), table, known)?);
        }
        Ok(tables)
    }
}

/// A value as the file has it, shortened.
fn quote(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", shorten(text)),
        DeValue::Integer(number) => shorten(&number.to_string()),
        DeValue::Float(number) => shorten(&number.to_string()),
        DeValue::Boolean(value) => value.to_string(),
        DeValue::Datetime(value) => value.to_string(),
        DeValue::Array(_) => "[...]".into(),
        DeValue::Table(_) => "{ ... }".into(),
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(QUOTE_CHARS_MAX) {
        Some((at, _)) => format!("{}...", &text[..at]),
        None => text.into(),
    }
}

/// What to say of a key that is none.
fn unknown(name: &str, known: &[&str]) -> String {
    if name == "form" {
        return "not a key: whether a replica forms a new group is said when it is started".into();
    }
    let nearest = known
        .iter()
        .min_by_key(|key| strsim::damerau_levenshtein(key, &shorten(name)))
        .filter(|key| strsim::damerau_levenshtein(key, &shorten(name)) <= key.len() / 2);
    match nearest {
        Some(nearest) => format!("unknown key; the nearest known one is {nearest}"),
        None if known == keys::REPLICA => format!("unknown key; expected {}", known.join(", ")),
        None => format!("unknown key; expected one of {}", known.join(", ")),
    }
}
