//! A replicated key-value service: the state machine, a protocol for clients over TCP, a server that is one thread, a
//! client that keeps the retry contract.
//!
//! - [`Op`]: the commands and their encoding; [`Store`]: what they do.
//! - [`wire`]: frames between client and server.
//! - [`Server`]: polls sockets and the replication engine in turn, in direct mode.
//! - [`Client`]: finds the leader, tries again with the same sequence number, and says unknown when it is.

mod client;
mod conn;
mod op;
mod server;
mod store;
#[cfg(test)]
mod tests;
pub mod wire;

pub use client::{Client, ClientError, ClientOptions, Connection};
pub use op::{Answer, KEY_BYTES_MAX, Op};
pub use server::{CONNECTIONS_MAX, Ended, Server};
pub use store::Store;
