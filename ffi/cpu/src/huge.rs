//! Zeroed memory for big tables: anonymous, 2 MiB-aligned, on huge pages where the machine has them.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::{fmt, ptr};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};
use zerocopy::FromZeros;

/// A slice of fixed length in memory of its own, all zero at first, its start aligned to 2 MiB.
///
/// Built by [`HugeSlice::zeroed`] or, with more to say, by [`Huge`]. Works without any huge page: what the kernel cannot back with
/// 2 MiB pages it backs with 4 KiB ones, as [`HugeSlice::is_hugetlb`] and `AnonHugePages` in `/proc/self/smaps` tell.
///
/// ```
/// use weir_cpu::HugeSlice;
/// use weir_cpu::zerocopy::FromZeros;
///
/// #[derive(FromZeros)]
/// #[zerocopy(crate = "weir_cpu::zerocopy")]
/// #[repr(C, align(64))]
/// struct Bucket {
///     tags: [u32; 4],
///     values: [u64; 6],
/// }
///
/// let mut table = HugeSlice::<Bucket>::zeroed(1 << 16)?;
/// table[7].values[0] += 1;
/// assert_eq!(table[7].tags, [0; 4]);
/// # Ok::<(), weir_cpu::MapError>(())
/// ```
pub struct HugeSlice<T> {
    start: NonNull<T>,
    len: usize,
    /// What `munmap` gets back, in bytes; 0 if nothing is mapped.
    mapped: usize,
    hugetlb: bool,
    owned: PhantomData<T>,
}

impl<T: FromZeros> HugeSlice<T> {
    /// `len` zero elements on transparent huge pages, touched when first used.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the size overflows or the kernel refuses the address space.
    pub fn zeroed(len: usize) -> Result<Self, MapError> {
        Huge::default().zeroed(len)
    }
}

impl<T> HugeSlice<T> {
    /// Whether the memory came from the reserved pool of huge pages (`vm.nr_hugepages`).
    #[must_use]
    pub fn is_hugetlb(&self) -> bool {
        self.hugetlb
    }

    /// Faults every page in that is not there yet, in portions: each is told to `done` in bytes. What is there stays as it is. The pages
    /// are taken from the NUMA node of the CPU that this runs on.
    ///
    /// # Errors
    ///
    /// [`MapError::Populate`] if there is not enough memory; what has been faulted in stays.
    pub fn populate(&mut self, mut done: impl FnMut(usize)) -> Result<(), MapError> {
        let start = self.start.as_ptr().cast::<u8>();
        for offset in (0..self.mapped).step_by(PORTION) {
            let bytes = PORTION.min(self.mapped - offset);
            let portion = start.wrapping_add(offset).cast();
            populate(portion, bytes).map_err(|source| MapError::Populate { bytes: self.mapped, source })?;
            done(bytes);
        }
        Ok(())
    }

    /// The address space taken, in bytes.
    #[must_use]
    pub fn mapped_bytes(&self) -> usize {
        self.mapped
    }
}

/// How to get the memory of a [`HugeSlice`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Huge {
    hugetlb: bool,
    populate: bool,
}

impl Huge {
    /// Whether to try the reserved pool of 2 MiB pages first (default: no). Without enough of them it falls back silently to
    /// transparent huge pages, which are as fast and need no reservation.
    #[must_use]
    pub fn hugetlb(self, hugetlb: bool) -> Self {
        Self { hugetlb, ..self }
    }

    /// Whether every page is faulted in now rather than at its first use (default: no), so that the hot path never pays for it.
    #[must_use]
    pub fn populate(self, populate: bool) -> Self {
        Self { populate, ..self }
    }

    /// Maps `len` zero elements.
    ///
    /// # Errors
    ///
    /// [`MapError`] if the size overflows, the kernel refuses the address space, or (when populating) runs out of memory.
    pub fn zeroed<T: FromZeros>(self, len: usize) -> Result<HugeSlice<T>, MapError> {
        const { assert!(align_of::<T>() <= HUGE_PAGE) };
        let overflow = MapError::TooLong { len, element: size_of::<T>() };
        let bytes = len.checked_mul(size_of::<T>()).filter(|&bytes| bytes <= LARGEST).ok_or(overflow)?;
        if bytes == 0 {
            return Ok(HugeSlice { start: NonNull::dangling(), len, mapped: 0, hugetlb: false, owned: PhantomData });
        }
        let map = |source| MapError::Map { bytes, source };
        let (start, mapped, hugetlb) = match self.hugetlb.then(|| map_hugetlb(bytes)) {
            Some(Ok((start, mapped))) => (start, mapped, true),
            Some(Err(_)) | None => {
                let (start, mapped) = map_aligned(bytes).map_err(map)?;
                (start, mapped, false)
            }
        };
        let start = NonNull::new(start.cast::<T>()).ok_or_else(|| map(Errno::NOMEM))?;
        // From here on the slice owns the mapping and gives it back if populating fails.
        let slice = HugeSlice { start, len, mapped, hugetlb, owned: PhantomData };
        if self.populate {
            populate(start.as_ptr().cast(), mapped).map_err(|source| MapError::Populate { bytes, source })?;
        }
        Ok(slice)
    }
}

/// Why there is no memory for a [`HugeSlice`]; nothing stays mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The length in bytes does not fit into the address space.
    #[error("{len} elements of {element} bytes are more than an address space holds")]
    TooLong {
        /// Elements asked for.
        len: usize,
        /// Size of one, in bytes.
        element: usize,
    },
    /// `mmap` refused.
    #[error("cannot map {bytes} bytes: {source}")]
    Map {
        /// Bytes asked for.
        bytes: usize,
        /// The kernel's answer.
        source: Errno,
    },
    /// There are not enough free pages to back all of it now.
    #[error("cannot populate {bytes} bytes: {source}")]
    Populate {
        /// Bytes asked for.
        bytes: usize,
        /// The kernel's answer.
        source: Errno,
    },
}

const PAGE: usize = 4096;
const HUGE_PAGE: usize = 2 << 20;
/// Faulted in at once: some tenths of a second on slow machines.
const PORTION: usize = 128 << 20;
/// The most that leaves room for the alignment's slack.
const LARGEST: usize = isize::MAX as usize - 2 * HUGE_PAGE;

/// Maps `bytes` from the reserved huge pages; the kernel aligns such a mapping itself.
fn map_hugetlb(bytes: usize) -> Result<(*mut c_void, usize), Errno> {
    let mapped = bytes.next_multiple_of(HUGE_PAGE);
    let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
    // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no existing memory.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, flags)? };
    Ok((start, mapped))
}

/// Maps `bytes` at a multiple of 2 MiB and advises transparent huge pages: maps 2 MiB too much, then cuts both ends off.
fn map_aligned(bytes: usize) -> Result<(*mut c_void, usize), Errno> {
    let mapped = bytes.next_multiple_of(if bytes >= HUGE_PAGE { HUGE_PAGE } else { PAGE });
    let flags = MapFlags::PRIVATE;
    // SAFETY: as in `map_hugetlb`.
    let raw =
        unsafe { mmap_anonymous(ptr::null_mut(), mapped + HUGE_PAGE, ProtFlags::READ | ProtFlags::WRITE, flags)? };
    let head = raw.addr().next_multiple_of(HUGE_PAGE) - raw.addr();
    let start = raw.wrapping_byte_add(head);
    let tail = HUGE_PAGE - head;
    // SAFETY: both ranges lie in the mapping just made, on page boundaries, outside of `start..start + mapped`, and nobody knows
    // of them yet. A failure (too many mappings) would only leave address space unused.
    unsafe {
        if head > 0 {
            let _ = munmap(raw, head);
        }
        if tail > 0 {
            let _ = munmap(start.wrapping_byte_add(mapped), tail);
        }
    }
    // SAFETY: the range is ours, and the advice changes page sizes, not contents. A kernel without THP refuses: small pages do.
    let _ = unsafe { madvise(start, mapped, Advice::LinuxHugepage) };
    Ok((start, mapped))
}

/// Faults every page in. Not `MAP_POPULATE`, which would run before the advice and take small pages.
fn populate(start: *mut c_void, mapped: usize) -> Result<(), Errno> {
    // SAFETY: the range is a live mapping of ours; prefaulting leaves its contents as they are.
    match unsafe { madvise(start, mapped, Advice::LinuxPopulateWrite) } {
        // A kernel before 5.14: write over what is there, page by page.
        Err(Errno::INVAL) => {
            for offset in (0..mapped).step_by(PAGE) {
                // SAFETY: `offset < mapped`, the memory is readable, writable, and the caller's alone.
                unsafe {
                    let byte = start.cast::<u8>().add(offset);
                    byte.write_volatile(byte.read_volatile());
                }
            }
            Ok(())
        }
        result => result,
    }
}

impl<T> Deref for HugeSlice<T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: `start` is aligned and owns `len` elements, which began as zero bytes, valid for `T: FromZeros` (the only
        // constructor's bound). The mapping lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T> DerefMut for HugeSlice<T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`; `&mut self` makes the borrow exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T> Drop for HugeSlice<T> {
    fn drop(&mut self) {
        if std::mem::needs_drop::<T>() {
            // SAFETY: the elements are valid (see `deref`) and nobody uses them after this.
            unsafe { ptr::drop_in_place(ptr::from_mut::<[T]>(&mut **self)) };
        }
        if self.mapped > 0 {
            // SAFETY: exactly what was mapped, and no borrow of it outlives `self`. It can fail only for wrong arguments.
            let _ = unsafe { munmap(self.start.as_ptr().cast(), self.mapped) };
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for HugeSlice<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

// SAFETY: it owns its elements as a `Box<[T]>` does; the mapping belongs to the process, not to a thread.
unsafe impl<T: Send> Send for HugeSlice<T> {}
// SAFETY: shared access gives `&[T]` and nothing else.
unsafe impl<T: Sync> Sync for HugeSlice<T> {}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn zeroed_aligned_and_writable_at_every_size() {
        for len in [1, 511, 512, 513, HUGE_PAGE / 8 - 1, HUGE_PAGE / 8, HUGE_PAGE / 8 + 1, 1 << 20] {
            let mut slice = HugeSlice::<u64>::zeroed(len).unwrap();
            assert_eq!(slice.len(), len);
            assert_eq!(slice.as_ptr().addr() % HUGE_PAGE, 0);
            assert!(slice.iter().all(|&word| word == 0));
            slice[0] = 1;
            slice[len - 1] = 2;
            assert_eq!(slice[len - 1], 2);
        }
    }

    #[test]
    fn populated_memory_is_resident() {
        for huge in [Huge::default(), Huge::default().hugetlb(true)] {
            let slice = huge.populate(true).zeroed::<[u64; 8]>(1 << 16).unwrap();
            assert!(present(&slice), "every page was asked for");
            assert!(slice.iter().all(|line| *line == [0; 8]));
        }
        assert!(!present(&HugeSlice::<[u64; 8]>::zeroed(1 << 16).unwrap()), "nothing was touched");
    }

    #[test]
    fn populating_later_keeps_what_is_there() {
        let mut slice = HugeSlice::<[u64; 8]>::zeroed((PORTION + HUGE_PAGE) / 64).unwrap();
        slice[5] = [7; 8];
        let mut portions = Vec::new();
        slice.populate(|bytes| portions.push(bytes)).unwrap();
        assert_eq!(portions, [PORTION, HUGE_PAGE]);
        assert!(present(&slice) && slice[5] == [7; 8] && slice[6] == [0; 8]);
        HugeSlice::<u64>::zeroed(0).unwrap().populate(|_| panic!("there is nothing")).unwrap();
    }

    #[test]
    fn an_impossible_length_is_an_error_with_the_bytes_asked_for() {
        assert_eq!(
            HugeSlice::<u64>::zeroed(usize::MAX).unwrap_err(),
            MapError::TooLong { len: usize::MAX, element: 8 }
        );
        let bytes = 1 << 55;
        assert!(matches!(HugeSlice::<u8>::zeroed(bytes).unwrap_err(), MapError::Map { bytes: b, .. } if b == bytes));
    }

    #[test]
    fn nothing_to_map() {
        assert!(HugeSlice::<u64>::zeroed(0).unwrap().is_empty());
        assert_eq!(HugeSlice::<()>::zeroed(usize::MAX).unwrap().len(), usize::MAX);
    }

    #[test]
    fn elements_are_dropped_once() {
        static DROPPED: AtomicU32 = AtomicU32::new(0);

        #[derive(FromZeros)]
        struct Noisy(u32);
        impl Drop for Noisy {
            fn drop(&mut self) {
                DROPPED.fetch_add(self.0 + 1, Ordering::Relaxed);
            }
        }

        let mut slice = HugeSlice::<Noisy>::zeroed(3).unwrap();
        slice[1].0 = 10;
        drop(slice);
        assert_eq!(DROPPED.load(Ordering::Relaxed), 13);
    }

    #[test]
    fn memory_moves_between_threads_and_goes_back() {
        for _ in 0..100 {
            let mut slice = HugeSlice::<u32>::zeroed(1 << 20).unwrap();
            slice[7] = 9;
            assert_eq!(std::thread::spawn(move || slice[7]).join().unwrap(), 9);
        }
    }

    /// Whether all pages of `slice` are in memory, by the kernel's page map (bit 63 of each page's word).
    fn present<T>(slice: &[T]) -> bool {
        let mut map = vec![0; size_of_val(slice) / PAGE * 8];
        let file = std::fs::File::open("/proc/self/pagemap").unwrap();
        file.read_exact_at(&mut map, (slice.as_ptr().addr() / PAGE * 8) as u64).unwrap();
        map.chunks(8).all(|word| word[7] & 0x80 != 0)
    }
}
