//! A unit's socket: packets in batches, and a wake-up for them only when it is wanted.

use std::io::{ErrorKind, IoSliceMut, Result};
use std::net::{SocketAddr, UdpSocket};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit, UdpSocketState};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use tokio::io::Interest;

pub(super) struct Socket {
    socket: UdpSocket,
    state: UdpSocketState,
    /// The same, where the runtime looks at it: each packet that comes, or leaves for good, costs a wake-up.
    watched: Option<tokio::net::UdpSocket>,
}

impl Socket {
    pub(super) fn new(socket: UdpSocket) -> Result<Socket> {
        let state = UdpSocketState::new((&socket).into())?;
        // As much as the kernel permits: all hosts may come at once, and heartbeats must not be lost among what else comes.
        if set_socket_recv_buffer_size_force(&socket, BUFFER).is_err() {
            let _ = state.set_recv_buffer_size((&socket).into(), BUFFER);
        }
        let _ = state.set_send_buffer_size((&socket).into(), BUFFER);
        Ok(Socket { socket, state, watched: None })
    }

    pub(super) fn local_addr(&self) -> Result<SocketAddr> {
        self.socket.local_addr()
    }

    /// So many packets the kernel may join into one.
    pub(super) fn receive_segments(&self) -> usize {
        self.state.gro_segments()
    }

    /// And so many it may cut one into.
    pub(super) fn transmit_segments(&self) -> usize {
        self.state.max_gso_segments()
    }

    /// Waits until there may be packets; only after this does one that comes wake anybody.
    pub(super) fn poll_readable(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let watched = match &mut self.watched {
            Some(watched) => watched,
            none => none.insert(tokio::net::UdpSocket::from_std(self.socket.try_clone()?)?),
        };
        watched.poll_recv_ready(cx)
    }

    /// Packets that come do not wake anybody any more.
    pub(super) fn unwatch(&mut self) {
        self.watched = None;
    }

    /// Takes a batch of those that are there; none if there are none.
    pub(super) fn receive(&self, buffers: &mut [IoSliceMut<'_>], metas: &mut [RecvMeta]) -> Result<usize> {
        let mut receive = || self.state.recv((&self.socket).into(), buffers, metas);
        let received = match &self.watched {
            Some(watched) => watched.try_io(Interest::READABLE, receive),
            None => receive(),
        };
        match received {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            received => received,
        }
    }

    /// What does not fit into the buffer is lost, and sent again as all that is lost.
    pub(super) fn send(&self, transmit: &Transmit<'_>) {
        let _ = self.state.send((&self.socket).into(), transmit);
    }
}

const BUFFER: usize = 8 << 20;
