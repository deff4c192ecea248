//! Tells `mu redis` what this node's role is.

use std::fs::File;
use std::io::Write;
use std::sync::Mutex;

use crate::node::Node;

static PIPE: Mutex<Option<File>> = Mutex::new(None);

/// Where it is told.
pub(crate) fn open(pipe: File) {
    *PIPE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(pipe);
}

/// Tells a role. Nobody who listens is no error: the process is watched otherwise too.
pub(crate) fn tell(node: &Node, role: &str) {
    let line = format!("{{\"role\":\"{role}\",\"id\":{}}}\n", node.setup.id);
    let mut pipe = PIPE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(pipe) = pipe.as_mut()
        && let Err(error) = pipe.write_all(line.as_bytes())
    {
        tracing::debug!(%error, "nobody hears of the role");
    }
}
