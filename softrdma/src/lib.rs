//! RDMA in software: memory regions, rights and queues over the threads of one process or the processes of one host.

mod copy;
mod copy_raw;
pub mod error;
pub mod limits;
mod map;
mod memory;
pub mod sync;
pub mod types;

pub use map::PageInfo;
pub use memory::Memory;
