//! RDMA in software: memory regions, rights and queues over the threads of one process or the processes of one host.

mod copy;
mod copy_raw;
mod cq;
mod engine;
pub mod error;
pub mod fault;
pub mod gate;
#[cfg(all(test, not(loom)))]
mod hostile;
mod inproc;
pub mod limits;
mod map;
mod memory;
mod node;
mod post;
mod qp;
mod region;
pub mod ring;
#[cfg(not(any(loom, miri)))]
pub mod shm;
mod slow;
pub mod sync;
mod table;
pub mod types;

pub use cq::Cq;
pub use inproc::Fabric;
pub use map::PageInfo;
pub use memory::Memory;
pub use node::{Node, Pd};
pub use qp::{Control, Qp};
pub use region::{Mr, Mw};
