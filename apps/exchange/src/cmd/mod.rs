//! The commands, one file each. A command ends with whether what it checked holds.

pub(crate) mod bench;
pub(crate) mod serve;

use std::io::Write;

use anyhow::{Context as _, Result};
use mu_exchange::exchange::SYMBOLS;
use serde::Serialize;

/// Wrong usage or configuration: exit status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Misuse(pub(crate) String);

/// Prints one JSON object. A reader that went away is no error.
fn print_json(report: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec(report).context("building the JSON")?;
    text.push(b'\n');
    let mut out = std::io::stdout().lock();
    match out.write_all(&text).and_then(|()| out.flush()) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(e).context("writing to standard output")
        }
        _ => Ok(()),
    }
}

/// The symbols that were named, or those that there are without.
fn symbols(named: &[String]) -> Vec<&str> {
    match named {
        [] => SYMBOLS.to_vec(),
        named => named.iter().map(String::as_str).collect(),
    }
}
