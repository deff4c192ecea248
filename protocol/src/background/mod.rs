//! x

mod arbiter;
mod digest;
mod link;
mod pulse;
mod score;
