//! An owned packet buffer of one segment: all accessors read `rte_mbuf`'s fields in Rust.

use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;

use arrayvec::ArrayVec;
use weir_dpdk_sys as sys;

/// A packet buffer, freed to its own pool when dropped. As large as a pointer.
///
/// Its buffer is `headroom | frame | tailroom`. What it upholds: one segment, no other owner, and a frame that lies inside the buffer.
#[repr(transparent)]
pub struct Mbuf(NonNull<sys::rte_mbuf>);

/// What a device found out about a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// It did not look.
    Unknown,
    /// Wrong.
    Bad,
    /// Right.
    Good,
    /// Not in the packet, but the data are sound (it came from this machine).
    Absent,
}

impl Mbuf {
    /// Takes ownership of what DPDK handed out.
    ///
    /// # Safety
    ///
    /// `raw` is a live buffer that nobody else owns. If it has more than one segment it may only be dropped.
    #[inline(always)]
    pub(crate) unsafe fn from_raw(raw: NonNull<sys::rte_mbuf>) -> Self {
        Self(raw)
    }

    /// The buffer's header, for a prefetch.
    #[inline(always)]
    #[must_use]
    pub fn header(&self) -> &sys::rte_mbuf {
        // SAFETY: owned and live until `drop`; nobody writes while `self` is borrowed.
        unsafe { self.0.as_ref() }
    }

    #[inline(always)]
    fn header_mut(&mut self) -> &mut sys::rte_mbuf {
        // SAFETY: owned exclusively, see `header`.
        unsafe { self.0.as_mut() }
    }

    /// The frame.
    #[inline(always)]
    #[must_use]
    pub fn data(&self) -> &[u8] {
        let header = self.header();
        // SAFETY: `data_off + data_len <= buf_len` (upheld by drivers and by every method here), and the buffer of `buf_len` bytes
        // is mapped memory that lives with its mbuf.
        unsafe {
            std::slice::from_raw_parts(
                header.buf_addr.cast::<u8>().add(usize::from(header.data_off)),
                usize::from(header.data_len),
            )
        }
    }

    /// The frame, to be rewritten in place.
    #[inline(always)]
    #[must_use]
    pub fn data_mut(&mut self) -> &mut [u8] {
        let header = self.header_mut();
        // SAFETY: as for `data`; `&mut self` and sole ownership of the buffer make it exclusive.
        unsafe {
            let start = header.buf_addr.cast::<u8>().add(usize::from(header.data_off));
            std::slice::from_raw_parts_mut(start, usize::from(header.data_len))
        }
    }

    /// The frame's length in bytes.
    #[inline(always)]
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.header().data_len)
    }

    /// Whether there is no frame in it.
    #[inline(always)]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Free bytes before the frame.
    #[inline(always)]
    #[must_use]
    pub fn headroom(&self) -> usize {
        usize::from(self.header().data_off)
    }

    /// Free bytes behind the frame.
    #[inline(always)]
    #[must_use]
    pub fn tailroom(&self) -> usize {
        let header = self.header();
        usize::from(header.buf_len).saturating_sub(usize::from(header.data_off) + usize::from(header.data_len))
    }

    /// Grows the frame by `bytes` at the front and returns them, contents undefined; `None` if there is no headroom (nothing changed).
    #[inline]
    pub fn prepend(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let grown = u16::try_from(bytes).ok()?;
        let header = self.header_mut();
        let data_off = header.data_off.checked_sub(grown)?;
        let data_len = header.data_len.checked_add(grown)?;
        header.data_off = data_off;
        self.set_len(data_len);
        self.data_mut().get_mut(..bytes)
    }

    /// Takes `bytes` off the front; `false` if the frame is shorter (nothing changed).
    #[inline]
    pub fn trim_front(&mut self, bytes: usize) -> bool {
        let Ok(cut) = u16::try_from(bytes) else { return false };
        let header = self.header_mut();
        let Some(data_len) = header.data_len.checked_sub(cut) else { return false };
        header.data_off += cut;
        self.set_len(data_len);
        true
    }

    /// Grows the frame by `bytes` at the end and returns them, contents undefined; `None` if there is no tailroom (nothing changed).
    #[inline]
    pub fn append(&mut self, bytes: usize) -> Option<&mut [u8]> {
        let old = self.len();
        if bytes > self.tailroom() {
            return None;
        }
        self.set_len(u16::try_from(old + bytes).ok()?);
        self.data_mut().get_mut(old..)
    }

    /// Cuts the frame to `len` bytes; `false` if it is shorter already (nothing changed).
    #[inline]
    pub fn truncate(&mut self, len: usize) -> bool {
        match u16::try_from(len) {
            Ok(len) if len <= self.header().data_len => {
                self.set_len(len);
                true
            }
            _ => false,
        }
    }

    /// Makes the frame `len` bytes long, cutting or growing at the end (new bytes undefined); `false` if there is no room.
    #[inline]
    pub fn resize(&mut self, len: usize) -> bool {
        match len.checked_sub(self.len()) {
            Some(more) => self.append(more).is_some(),
            None => self.truncate(len),
        }
    }

    #[inline(always)]
    fn set_len(&mut self, len: u16) {
        let header = self.header_mut();
        header.data_len = len;
        header.pkt_len = u32::from(len);
    }

    /// Whether the frame is in one piece: true of every buffer this crate hands out.
    #[inline(always)]
    #[must_use]
    pub fn is_contiguous(&self) -> bool {
        self.segments() == 1
    }

    /// In how many pieces the frame is.
    #[inline(always)]
    #[must_use]
    pub fn segments(&self) -> u16 {
        self.header().nb_segs
    }

    /// The port's index that it came in by.
    #[inline(always)]
    #[must_use]
    pub fn port(&self) -> u16 {
        self.header().port
    }

    /// The device's hash of the flow, if it has computed one.
    #[inline(always)]
    #[must_use]
    pub fn rss_hash(&self) -> Option<u32> {
        let header = self.header();
        // SAFETY: all of an mbuf's bytes are initialised memory and any bits make a u32; the flag says that they are the hash.
        (header.ol_flags & u64::from(sys::RTE_MBUF_F_RX_RSS_HASH) != 0)
            .then_some(unsafe { header.__bindgen_anon_2.hash.rss })
    }

    /// The VLAN tag control information that the device has taken out of the frame.
    #[inline(always)]
    #[must_use]
    pub fn stripped_vlan(&self) -> Option<u16> {
        let header = self.header();
        (header.ol_flags & u64::from(sys::RTE_MBUF_F_RX_VLAN_STRIPPED) != 0).then_some(header.vlan_tci)
    }

    /// What the device says about the IPv4 header's checksum.
    #[inline]
    #[must_use]
    pub fn ip_checksum(&self) -> Checksum {
        self.checksum(sys::RTE_MBUF_F_RX_IP_CKSUM_BAD, sys::RTE_MBUF_F_RX_IP_CKSUM_GOOD)
    }

    /// What the device says about the TCP or UDP checksum.
    #[inline]
    #[must_use]
    pub fn l4_checksum(&self) -> Checksum {
        self.checksum(sys::RTE_MBUF_F_RX_L4_CKSUM_BAD, sys::RTE_MBUF_F_RX_L4_CKSUM_GOOD)
    }

    #[inline(always)]
    fn checksum(&self, bad: u32, good: u32) -> Checksum {
        let flags = self.header().ol_flags;
        match (flags & u64::from(bad) != 0, flags & u64::from(good) != 0) {
            (false, false) => Checksum::Unknown,
            (true, false) => Checksum::Bad,
            (false, true) => Checksum::Good,
            (true, true) => Checksum::Absent,
        }
    }
}

impl Drop for Mbuf {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: owned, so freed once; it goes to the pool that its header names, which lives for ever.
        unsafe { sys::shim_free(self.0.as_ptr()) };
    }
}

impl AsRef<Mbuf> for Mbuf {
    #[inline(always)]
    fn as_ref(&self) -> &Mbuf {
        self
    }
}

impl fmt::Debug for Mbuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mbuf")
            .field("len", &self.len())
            .field("headroom", &self.headroom())
            .field("port", &self.port())
            .finish()
    }
}

// SAFETY: sole owner of its buffer; pools take buffers back from any thread.
unsafe impl Send for Mbuf {}
// SAFETY: a shared reference only reads.
unsafe impl Sync for Mbuf {}

/// Frees all packets of a burst with one call, each to its own pool. The burst is empty afterwards.
#[inline]
pub fn free_burst<T: Into<Mbuf>, const N: usize>(burst: &mut ArrayVec<T, N>) {
    let count = burst.len();
    let elements = burst.as_mut_ptr();
    // SAFETY: empties the burst without dropping; each element is moved out of it below, once.
    unsafe { burst.set_len(0) };
    let mut raw = [const { MaybeUninit::<Mbuf>::uninit() }; N];
    for (index, slot) in raw.iter_mut().enumerate().take(count) {
        // SAFETY: `index < count`, an element that was initialised.
        slot.write(unsafe { elements.add(index).read() }.into());
    }
    // SAFETY: `raw` begins with `count` owned buffers, a pointer each (`Mbuf` is transparent), which nobody drops again.
    unsafe { sys::rte_pktmbuf_free_bulk(raw.as_mut_ptr().cast(), u32::try_from(count).unwrap_or(u32::MAX)) };
}
