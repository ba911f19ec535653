//! The sockets that af_packet and af_xdp drivers have inside: what an idle core can sleep on, since DPDK offers no interrupt for them.

use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::sockopt::{socket_domain, socket_error};

use crate::port::{Port, Shared};
use crate::queue::RxQueue;

/// What one core waits for: the drivers' sockets of its receive queues, and descriptors of its own (an eventfd that other cores
/// write to, say). It keeps the ports open.
#[derive(Debug, Default)]
pub struct PacketSockets {
    polled: Vec<PollFd<'static>>,
    fds: Vec<RawFd>,
    ports: Vec<Arc<Shared>>,
    owned: Vec<Arc<OwnedFd>>,
}

impl PacketSockets {
    /// Nothing to wait for yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Also waits for packets on this queue. `false` if its driver has no socket (rings, TAP, PCI): then somebody has to poll it.
    pub fn add_queue(&mut self, queue: &RxQueue) -> bool {
        self.add_port_sockets(queue.shared(), queue.sockets())
    }

    /// Also waits for packets on any queue of this port; `false` as for [`PacketSockets::add_queue`].
    pub fn add_port(&mut self, port: &Port) -> bool {
        self.add_port_sockets(port.shared(), port.shared().all_sockets())
    }

    /// Also waits until this descriptor is readable; reading it empty is the caller's part.
    pub fn add_descriptor(&mut self, descriptor: Arc<OwnedFd>) {
        // SAFETY: `owned` keeps it open as long as `polled` names it.
        let fd = unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&descriptor)) };
        self.polled.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        self.owned.push(descriptor);
    }

    fn add_port_sockets(&mut self, shared: &Arc<Shared>, fds: &[RawFd]) -> bool {
        for &fd in fds.iter().filter(|fd| !self.fds.contains(fd)).collect::<Vec<_>>() {
            // SAFETY: the driver closes it when the port closes, and `ports` keeps the port open as long as `polled` names it.
            let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
            self.polled.push(PollFd::from_borrowed_fd(borrowed, PollFlags::IN));
            self.fds.push(fd);
            self.ports.push(Arc::clone(shared));
        }
        !fds.is_empty()
    }

    /// How many descriptors it waits for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.polled.len()
    }

    /// Whether there is nothing to wait for.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.polled.is_empty()
    }

    /// Sleeps until one of them has something, or for `timeout`. Says whether one has; a signal counts as a time-out. Never
    /// allocates. With nothing to wait for it just sleeps.
    ///
    /// # Errors
    ///
    /// The kernel's, from `poll`.
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, Errno> {
        let timeout = Timespec::try_from(timeout).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        for polled in &mut self.polled {
            polled.clear_revents();
        }
        match poll(&mut self.polled, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(false),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
        let mut readable = false;
        for polled in &self.polled {
            readable |= polled.revents().contains(PollFlags::IN);
            if polled.revents().contains(PollFlags::ERR) {
                // An interface that went down leaves an error pending, and `poll` would return at once for ever: take it off.
                let _ = socket_error(polled.as_fd());
            }
        }
        Ok(readable)
    }
}

/// The process's AF_PACKET and AF_XDP sockets, in ascending order.
pub(crate) fn packet_sockets() -> Vec<RawFd> {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let mut fds: Vec<RawFd> = entries
        .filter_map(|entry| entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()))
        .filter(|&fd| fd >= 0)
        .filter(|&fd| {
            // SAFETY: borrowed for one query. Should another thread have closed it meanwhile the query fails or is about another
            // descriptor, and nothing is changed.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            matches!(socket_domain(fd), Ok(AddressFamily::PACKET | AddressFamily::XDP))
        })
        .collect();
    fds.sort_unstable();
    fds
}

/// Remembers as `device`'s what is new since `before`: af_packet opens its sockets when the device is made. Under the control lock.
pub(crate) fn remember(device: &str, before: &[RawFd]) {
    let fresh = since(before);
    if !fresh.is_empty() {
        MADE.lock().push((device.to_owned(), fresh));
    }
}

/// Takes what was remembered for `device`.
pub(crate) fn recall(device: &str) -> Vec<RawFd> {
    let mut made = MADE.lock();
    match made.iter().position(|(name, _)| name == device) {
        Some(at) => made.swap_remove(at).1,
        None => Vec::new(),
    }
}

/// The packet sockets that are new since `before`.
pub(crate) fn since(before: &[RawFd]) -> Vec<RawFd> {
    packet_sockets().into_iter().filter(|fd| !before.contains(fd)).collect()
}

/// Keeps those of `fds` that are not AF_PACKET sockets of another interface than `if_index`: another thread may have opened one
/// meanwhile.
pub(crate) fn of_interface(fds: Vec<RawFd>, if_index: u32) -> Vec<RawFd> {
    fds.into_iter().filter(|&fd| packet_interface(fd).is_none_or(|index| index == if_index)).collect()
}

/// The interface that an AF_PACKET socket is bound to; `None` for other sockets.
fn packet_interface(fd: RawFd) -> Option<u32> {
    // SAFETY: as in `packet_sockets`.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let address =
        rustix::net::getsockname(fd).ok().filter(|address| address.address_family() == AddressFamily::PACKET)?;
    // struct sockaddr_ll: family and protocol in two bytes each, then the index as a native int.
    let start = size_of::<u16>() * 2;
    (usize::try_from(address.addr_len()).ok()? >= start + size_of::<c_int>()).then_some(())?;
    // SAFETY: the storage behind the address has at least `addr_len` initialised bytes, which was just checked.
    let index = unsafe { address.as_ptr().cast::<u8>().add(start).cast::<c_int>().read_unaligned() };
    u32::try_from(index).ok()
}

/// Sockets of devices that were made and not started yet, by the device's name.
static MADE: Mutex<Vec<(String, Vec<RawFd>)>> = Mutex::new(Vec::new());
