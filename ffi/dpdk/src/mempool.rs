//! Packet pools: a fixed number of buffers, taken and given back by any thread.

use std::ffi::{CString, c_int};
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};

use arrayvec::ArrayVec;
use weir_dpdk_sys as sys;

use crate::eal::{CONTROL, Eal};
use crate::errno::Errno;
use crate::mbuf::Mbuf;
use crate::port::OVERHEAD;

/// A pool of packet buffers. It lasts as long as the process, since a buffer may outlive every handle; so the handle is free to
/// copy, and pools are made at start, not on the way.
#[derive(Debug, Clone, Copy)]
pub struct Mempool {
    raw: NonNull<sys::rte_mempool>,
    data_room: u16,
    mbufs: u32,
}

/// A pool's size and shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolConfig {
    /// How many buffers. One less than a power of two wastes no memory.
    pub mbufs: u32,
    /// Buffers that each thread known to EAL may keep for itself (0 to 512, at most two thirds of `mbufs`).
    pub cache: u32,
    /// Bytes for a frame in each buffer, without the headroom: see [`PoolConfig::data_room_for`].
    pub data_room: u16,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { mbufs: 8191, cache: 256, data_room: 2048 }
    }
}

impl PoolConfig {
    /// The room that keeps frames of this MTU in one buffer with every driver: physical NICs divide it by 128 bytes or by 1 KiB and
    /// use the whole parts only, so that with exactly MTU + 26 they would cut large frames in two.
    #[must_use]
    pub fn data_room_for(mtu: u16) -> u16 {
        mtu.saturating_add(OVERHEAD).checked_next_multiple_of(1024).unwrap_or(u16::MAX).max(LEAST_DATA_ROOM)
    }

    /// The memory it takes, about, in bytes: what [`crate::MemoryMode::NoHuge`] has to have beside 16 MiB for the rest.
    #[must_use]
    pub fn bytes(&self) -> usize {
        // Each has the buffer's own header, the pool's header and trailer, and padding between memory channels.
        self.mbufs as usize * (size_of::<sys::rte_mbuf>() + HEADROOM + usize::from(self.data_room) + 192)
    }
}

/// Why there is no pool; nothing is left of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// DPDK takes names of 1 to 25 bytes.
    #[error("a pool cannot be named {0:?}")]
    Name(String),
    /// It could not be made: too little memory, a name that exists, or a cache larger than the pool.
    #[error("no pool {name} of {} buffers, {bytes} bytes: {errno}", config.mbufs)]
    Create {
        /// The pool's name.
        name: String,
        /// What was asked for.
        config: PoolConfig,
        /// The memory it would take.
        bytes: usize,
        /// DPDK's error.
        errno: Errno,
    },
}

/// Bytes before a received frame, in every buffer.
const HEADROOM: usize = sys::RTE_PKTMBUF_HEADROOM as usize;

impl Mempool {
    /// Makes a pool with a name of its own.
    ///
    /// # Errors
    ///
    /// [`PoolError`].
    pub fn new(_eal: Eal, name: &str, config: PoolConfig) -> Result<Self, PoolError> {
        let c_name = CString::new(name).ok().filter(|name| (1..=25).contains(&name.count_bytes()));
        let c_name = c_name.ok_or_else(|| PoolError::Name(name.to_owned()))?;
        let failed = |errno| PoolError::Create { name: name.to_owned(), config, bytes: config.bytes(), errno };
        let room = usize::from(config.data_room) + HEADROOM;
        let buffer = u16::try_from(room).map_err(|_| failed(Errno(EINVAL)))?;
        let element = u32::try_from(size_of::<sys::rte_mbuf>() + room).map_err(|_| failed(Errno(EINVAL)))?;
        let private = u32::try_from(size_of::<sys::rte_pktmbuf_pool_private>()).map_err(|_| failed(Errno(EINVAL)))?;
        let _control = CONTROL.lock();
        // Without huge pages DPDK would put one buffer into each page, so that all headers compete for the same cache sets. That
        // is for devices that do DMA, of which there are none then.
        // SAFETY: EAL runs.
        let flags = if unsafe { sys::rte_eal_has_hugepages() } == 0 { sys::RTE_MEMPOOL_F_NO_IOVA_CONTIG } else { 0 };
        // SAFETY: EAL runs, the name is a NUL-terminated string that is copied.
        let raw = unsafe {
            sys::rte_mempool_create_empty(
                c_name.as_ptr(),
                config.mbufs,
                element,
                config.cache,
                private,
                ANY_SOCKET,
                flags,
            )
        };
        let raw = NonNull::new(raw).ok_or_else(|| failed(Errno::last()))?;
        let mut shape = sys::rte_pktmbuf_pool_private { mbuf_data_room_size: buffer, ..Default::default() };
        // SAFETY: the calls and their order are those of `rte_pktmbuf_pool_create`, on a fresh pool that nobody else knows.
        let populated = unsafe {
            let pool = raw.as_ptr();
            Errno::check(sys::rte_mempool_set_ops_byname(pool, c"ring_mp_mc".as_ptr(), ptr::null_mut())).and_then(
                |_| {
                    sys::rte_pktmbuf_pool_init(pool, ptr::from_mut(&mut shape).cast());
                    Errno::check(sys::rte_mempool_populate_default(pool))
                },
            )
        };
        if let Err(errno) = populated {
            // SAFETY: nothing was taken from it.
            unsafe { sys::rte_mempool_free(raw.as_ptr()) };
            return Err(failed(errno));
        }
        // SAFETY: populated above; `rte_pktmbuf_init` is made for this iteration and visits every buffer once.
        unsafe { sys::rte_mempool_obj_iter(raw.as_ptr(), Some(sys::rte_pktmbuf_init), ptr::null_mut()) };
        Ok(Self { raw, data_room: config.data_room, mbufs: config.mbufs })
    }

    /// An empty buffer; `None` if the pool is exhausted.
    #[inline]
    #[must_use]
    pub fn alloc(&self) -> Option<Mbuf> {
        // SAFETY: a populated packet pool that lives for ever; its operations are safe for many producers and consumers.
        let raw = NonNull::new(unsafe { sys::shim_alloc(self.raw.as_ptr()) })?;
        // SAFETY: a fresh buffer of one segment that belongs to nobody else.
        Some(unsafe { Mbuf::from_raw(raw) })
    }

    /// Appends `count` empty buffers to `burst`: all of them, or none if the pool or the room in `burst` is too small. Says which.
    #[inline]
    pub fn alloc_burst<T: From<Mbuf>, const N: usize>(&self, burst: &mut ArrayVec<T, N>, count: usize) -> bool {
        let Ok(wanted) = u32::try_from(count) else { return false };
        if count > burst.remaining_capacity() {
            return false;
        }
        let mut raw = [const { MaybeUninit::<NonNull<sys::rte_mbuf>>::uninit() }; N];
        // SAFETY: `raw` has room for N >= `count` pointers; the call fills that many or none.
        if unsafe { sys::shim_alloc_bulk(self.raw.as_ptr(), raw.as_mut_ptr().cast(), wanted) } != 0 {
            return false;
        }
        let before = burst.len();
        let elements = burst.as_mut_ptr();
        for (index, slot) in raw[..count].iter().enumerate() {
            // SAFETY: just filled with a fresh buffer of one segment that is ours alone; `count` fit behind the last element.
            unsafe { elements.add(before + index).write(T::from(Mbuf::from_raw(slot.assume_init()))) };
        }
        // SAFETY: the elements behind `before` were just written.
        unsafe { burst.set_len(before + count) };
        true
    }

    /// Buffers that somebody holds: programs, rings, drivers. Counted, not read: for tests and metrics.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        // SAFETY: only reads counters of a pool that lives for ever.
        unsafe { sys::rte_mempool_in_use_count(self.raw.as_ptr()) }
    }

    /// Buffers that can be taken (some perhaps only by the thread that has them in its cache).
    #[must_use]
    pub fn available(&self) -> u32 {
        // SAFETY: as for `in_use`.
        unsafe { sys::rte_mempool_avail_count(self.raw.as_ptr()) }
    }

    /// How many buffers it has.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.mbufs
    }

    /// Bytes for a frame in each buffer, without the headroom.
    #[must_use]
    pub fn data_room(&self) -> u16 {
        self.data_room
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.raw.as_ptr()
    }
}

// SAFETY: the pool lives for ever, and its operations (ring_mp_mc, with caches per EAL thread) may be called by any thread.
unsafe impl Send for Mempool {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mempool {}

/// What many drivers expect at least.
const LEAST_DATA_ROOM: u16 = 2048;
/// `SOCKET_ID_ANY`: memory from any NUMA node.
const ANY_SOCKET: c_int = -1;
const EINVAL: i32 = 22;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_fits_into_what_a_nic_makes_of_the_room() {
        assert_eq!([1500, 1998, 1999, 9000, 9600].map(PoolConfig::data_room_for), [2048, 2048, 2048, 9216, 10240]);
        for mtu in 68..=9600 {
            let room = PoolConfig::data_room_for(mtu);
            // i40e and ice, ixgbe and igb.
            for granularity in [128, 1024] {
                assert!(room / granularity * granularity >= mtu + OVERHEAD, "MTU {mtu}, parts of {granularity}");
            }
        }
    }
}
