//! Handles. A handle is a slot's number and the slot's generation, which goes up when the slot is used again, so one
//! that was closed is told from one that took its place, and from one that never was.

use std::sync::{Arc, PoisonError, RwLock};

use crate::code::{Fault, MU_CLOSED};
use crate::instance::Instance;

struct Slot {
    generation: u32,
    instance: Option<Arc<Instance>>,
}

/// Nothing panics half-way under this lock.
static TABLE: RwLock<Vec<Slot>> = RwLock::new(Vec::new());

/// The low half is the slot's number and 1, so that no handle is 0.
fn handle_of(slot: usize, generation: u32) -> u64 {
    u64::from(generation) << 32 | (slot as u64 + 1)
}

fn parts(handle: u64) -> Option<(usize, u32)> {
    let slot = (handle as u32).checked_sub(1)?;
    Some((slot as usize, (handle >> 32) as u32))
}

/// Gives an instance a handle.
pub(crate) fn insert(instance: Arc<Instance>) -> u64 {
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    // A generation that has come to its end is not used again.
    let free = |slot: &Slot| slot.instance.is_none() && slot.generation < u32::MAX;
    let at = table.iter().position(free).unwrap_or_else(|| {
        table.push(Slot {
            generation: 0,
            instance: None,
        });
        table.len() - 1
    });
    let slot = &mut table[at];
    slot.generation += 1;
    slot.instance = Some(instance);
    handle_of(at, slot.generation)
}

/// What a handle stands for.
pub(crate) fn get(handle: u64) -> Result<Arc<Instance>, Fault> {
    let table = TABLE.read().unwrap_or_else(PoisonError::into_inner);
    let (slot, generation) = parts(handle).ok_or_else(|| no_handle(handle))?;
    match table.get(slot) {
        Some(slot) if slot.generation == generation => {
            slot.instance.clone().ok_or_else(|| closed(handle))
        }
        Some(slot) if 0 < generation && generation < slot.generation => Err(closed(handle)),
        _ => Err(no_handle(handle)),
    }
}

/// Takes a handle out; its instance is the caller's to end.
pub(crate) fn remove(handle: u64) -> Result<Arc<Instance>, Fault> {
    let instance = get(handle)?;
    let mut table = TABLE.write().unwrap_or_else(PoisonError::into_inner);
    let taken = parts(handle).and_then(|(slot, generation)| {
        let slot = table.get_mut(slot)?;
        (slot.generation == generation).then(|| slot.instance.take())?
    });
    drop(table);
    // Another thread may have been quicker.
    taken.map(|_| instance).ok_or_else(|| closed(handle))
}

fn closed(handle: u64) -> Fault {
    Fault::new(MU_CLOSED, format!("the handle {handle:#x} was closed"))
}

fn no_handle(handle: u64) -> Fault {
    Fault::argument(format!("{handle:#x} is no handle"))
}
