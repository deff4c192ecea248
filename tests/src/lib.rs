//! Shared parts of the test programs.
