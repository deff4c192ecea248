//! The simulated device against what the traits of `mu-verbs` promise, and its faults.

mod faults;
mod pair;
mod rights;
mod verbs;
