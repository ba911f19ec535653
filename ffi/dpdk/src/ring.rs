//! Ports made of rings in memory: a loop, or two ports back to back. For tests and benchmarks, with rings of any size.

use std::ffi::{CString, c_int};
use std::ptr::NonNull;
use std::sync::Arc;

use weir_dpdk_sys as sys;

use crate::eal::{CONTROL, Eal};
use crate::errno::Errno;
use crate::port::{IdlePort, PortError};

/// Why there are no ring ports.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// DPDK takes names of 1 to 16 bytes here.
    #[error("a ring port cannot be named {0:?}")]
    Name(String),
    /// A ring of that many slots could not be made (at least 1), or the name exists.
    #[error("no ring of {slots} slots for {name}: {errno}")]
    Create {
        /// The port's name.
        name: String,
        /// What was asked for.
        slots: u32,
        /// DPDK's error.
        errno: Errno,
    },
    /// The rings are there, the port is not.
    #[error(transparent)]
    Port(#[from] PortError),
}

impl IdlePort {
    /// A port with `queues` queues, each of which receives what the transmit queue of the same index has sent: at most `slots`
    /// packets at a time.
    ///
    /// # Errors
    ///
    /// [`RingError`]; nothing is left.
    pub fn ring_loop(_eal: Eal, name: &str, queues: u16, slots: u32) -> Result<Self, RingError> {
        let _control = CONTROL.lock();
        let rings = Arc::new(Rings::new(name, queues, slots)?);
        port(name, &rings, &rings.0, &rings.0)
    }

    /// Two ports `NAMEa` and `NAMEb` with one queue each, back to back.
    ///
    /// # Errors
    ///
    /// [`RingError`].
    pub fn ring_pair(_eal: Eal, name: &str, slots: u32) -> Result<(Self, Self), RingError> {
        let control = CONTROL.lock();
        let rings = Arc::new(Rings::new(name, 2, slots)?);
        let (there, back) = rings.0.split_at(1);
        let first = port(&format!("{name}a"), &rings, back, there)?;
        let second = port(&format!("{name}b"), &rings, there, back);
        // A failure drops the first port, which takes the lock.
        drop(control);
        Ok((first, second?))
    }
}

/// The rings behind one or two ports; freed with what is still in them when the last of the ports is closed.
#[derive(Debug)]
pub(crate) struct Rings(Vec<NonNull<sys::rte_ring>>);

impl Rings {
    fn new(name: &str, count: u16, slots: u32) -> Result<Self, RingError> {
        if !(1..=16).contains(&name.len()) {
            return Err(RingError::Name(name.to_owned()));
        }
        let mut rings = Self(Vec::new());
        for index in 0..count {
            let c_name = CString::new(format!("{name}-{index}")).map_err(|_| RingError::Name(name.to_owned()))?;
            // SAFETY: EAL runs (its handle was shown); a NUL-terminated string that is copied. Each ring has one queue at either end.
            let ring = unsafe { sys::rte_ring_create(c_name.as_ptr(), slots, ANY_SOCKET, RING_FLAGS) };
            let failed = || RingError::Create { name: name.to_owned(), slots, errno: Errno::last() };
            rings.0.push(NonNull::new(ring).ok_or_else(failed)?);
        }
        Ok(rings)
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        for ring in &self.0 {
            // SAFETY: all ports over these rings are closed (each holds this), so that nobody else uses them.
            unsafe {
                sys::shim_ring_drain(ring.as_ptr());
                sys::rte_ring_free(ring.as_ptr());
            }
        }
    }
}

// SAFETY: a list of addresses; who may use a ring is settled by the ports' queues, of which each exists once.
unsafe impl Send for Rings {}
// SAFETY: as for `Send`; shared access only reads the addresses.
unsafe impl Sync for Rings {}

fn port(
    name: &str,
    rings: &Arc<Rings>,
    rx: &[NonNull<sys::rte_ring>],
    tx: &[NonNull<sys::rte_ring>],
) -> Result<IdlePort, RingError> {
    let c_name = CString::new(name).map_err(|_| RingError::Name(name.to_owned()))?;
    let count = |list: &[_]| u32::try_from(list.len()).unwrap_or(u32::MAX);
    // SAFETY: EAL runs; arrays of live rings (`NonNull` has a pointer's layout) which are copied, and which `rings` keeps alive
    // until the port is closed.
    let id = unsafe {
        let (rx_start, tx_start) = (rx.as_ptr().cast(), tx.as_ptr().cast());
        sys::rte_eth_from_rings(c_name.as_ptr(), rx_start, count(rx), tx_start, count(tx), LOCAL_NODE)
    };
    let id =
        u16::try_from(id).map_err(|_| RingError::Create { name: name.to_owned(), slots: 0, errno: Errno::last() })?;
    // Should somebody else have the port, it uses the rings without knowing of them: then they must not be freed.
    IdlePort::from_rings(id, format!("net_ring_{name}"), Arc::clone(rings)).map_err(|error| {
        std::mem::forget(Arc::clone(rings));
        error.into()
    })
}

/// `SOCKET_ID_ANY`.
const ANY_SOCKET: c_int = -1;
/// The driver wants a node, and any will do.
const LOCAL_NODE: u32 = 0;
/// Exactly as many slots as asked for, one producer and one consumer.
const RING_FLAGS: u32 = sys::RING_F_EXACT_SZ | sys::RING_F_SP_ENQ | sys::RING_F_SC_DEQ;
