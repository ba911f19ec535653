//! How tables come to their memory at start rather than in the hot path: by the thread that calls, in portions, with the progress told.

use weir_cpu::{Huge, HugeSlice, MapError};
use zerocopy::FromZeros;

/// Takes the memory of tables for their first use. It comes from the NUMA node of the CPU that the calling thread runs on.
pub struct Populate<'a> {
    huge: bool,
    done: &'a (dyn Fn(usize) + Sync),
}

impl<'a> Populate<'a> {
    /// From the reserved huge pages first, if `huge`; `done` is told each portion, in bytes.
    #[must_use]
    pub fn new(huge: bool, done: &'a (dyn Fn(usize) + Sync)) -> Self {
        Self { huge, done }
    }

    /// Takes the memory of a slice that is all zero still.
    ///
    /// # Errors
    ///
    /// [`MapError`] if there is not enough.
    pub(crate) fn slice<T: FromZeros>(&self, slice: &mut HugeSlice<T>) -> Result<(), MapError> {
        if self.huge && !slice.is_hugetlb() && slice.mapped_bytes() >= LEAST_HUGE {
            *slice = Huge::default().hugetlb(true).zeroed(slice.len())?;
        }
        slice.populate(|bytes| (self.done)(bytes))
    }

    /// Takes the memory that a vector without elements has been promised, by filling and clearing it.
    pub(crate) fn vector<T: Copy>(&self, vector: &mut Vec<T>, filling: T) {
        while vector.len() < vector.capacity() {
            let more = (vector.capacity() - vector.len()).min(PORTION / size_of::<T>().max(1));
            vector.resize(vector.len() + more, filling);
            (self.done)(more * size_of::<T>());
        }
        vector.clear();
    }
}

/// A reserved page; what is smaller is not worth one.
const LEAST_HUGE: usize = 2 << 20;
const PORTION: usize = 128 << 20;
