//! The exported functions, called as a C program calls them.

mod ending;
mod group;
mod header;
mod misuse;
mod modes;
