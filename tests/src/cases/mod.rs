//! The cases: what every backend must do, from the behaviour that libibverbs documents.

mod data;
mod death;
mod local;
mod order;
mod queues;
mod receive;
mod refusals;
mod regions;
mod revoke;
mod states;
mod windows;

use anyhow::Result;
use mu_verbs::Context;

use crate::harness::Setup;

/// One case.
pub struct Case<C: Context> {
    /// Group and name.
    pub name: &'static str,
    /// Runs it. An error fails it, unless it is a [`Skip`](crate::harness::Skip).
    pub run: fn(&Setup<C>) -> Result<()>,
}

/// Lists the cases of a module under its name.
macro_rules! table {
    ($group:ident: $($name:ident),* $(,)?) => {
        pub(super) fn table<C: mu_verbs::Context>() -> Vec<super::Case<C>> {
            vec![$(super::Case { name: concat!(stringify!($group), "::", stringify!($name)), run: $name::<C> }),*]
        }
    };
}
use table;

/// All of them, in the order they run.
pub fn all<C: Context>() -> Vec<Case<C>> {
    let groups = [
        data::table(),
        queues::table(),
        order::table(),
        receive::table(),
        states::table(),
        refusals::table(),
        local::table(),
        regions::table(),
        windows::table(),
        revoke::table(),
        death::table(),
    ];
    groups.into_iter().flatten().collect()
}
