//! Cache-line prefetch: hints that a burst's table lines will be read or written soon.

/// Asks for the cache line at `target`'s first byte, to be read soon.
#[inline(always)]
pub fn prefetch_read<T>(target: &T) {
    hint_read(std::ptr::from_ref(target));
}

/// Asks for the cache line at `target`'s first byte, to be written soon.
#[inline(always)]
pub fn prefetch_write<T>(target: &T) {
    hint_write(std::ptr::from_ref(target));
}

/// Asks for the first cache line of `slice[index]`, to be read soon. An index out of range costs the same and does nothing.
#[inline(always)]
pub fn prefetch_at<T>(slice: &[T], index: usize) {
    hint_read(slice.as_ptr().wrapping_add(index));
}

/// Asks for the first cache line of `slice[index]`, to be written soon. An index out of range costs the same and does nothing.
#[inline(always)]
pub fn prefetch_write_at<T>(slice: &[T], index: usize) {
    hint_write(slice.as_ptr().wrapping_add(index));
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn hint_read<T>(address: *const T) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch never faults and changes no architectural state, whatever the address; SSE is in x86-64's baseline.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast::<i8>()) }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn hint_write<T>(address: *const T) {
    use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
    // SAFETY: as for `hint_read`; a CPU without PREFETCHW gets an ordinary prefetch.
    unsafe { _mm_prefetch::<_MM_HINT_ET0>(address.cast::<i8>()) }
}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn hint_read<T>(_address: *const T) {}

#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn hint_write<T>(_address: *const T) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_index_is_harmless() {
        let table = [1_u64, 2, 3];
        for index in [0, 2, 3, 1 << 40, usize::MAX] {
            prefetch_at(&table, index);
            prefetch_write_at(&table, index);
        }
        prefetch_at::<u64>(&[], 0);
        prefetch_read(&table);
        prefetch_write(&table[1]);
        assert_eq!(table, [1, 2, 3]);
    }
}
