//! Measures of how busy the machine or an application is, as parts from 0 to 1: pressure, CPU, accept queue.

use std::net::{IpAddr, SocketAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use netlink_packet_sock_diag::{SockDiagMessage, constants};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_SOCK_DIAG};

/// Part of the last 10 s in which some task waited for a CPU.
pub(crate) fn pressure() -> Option<f64> {
    pressure_in(&std::fs::read_to_string("/proc/pressure/cpu").ok()?)
}

fn pressure_in(text: &str) -> Option<f64> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let average = some.split(' ').find_map(|field| field.strip_prefix("avg10="))?;
    Some(average.parse::<f64>().ok()? / 100.0)
}

/// All CPUs' time so far, by which their use is told.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct CpuTime {
    busy: u64,
    all: u64,
}

impl CpuTime {
    /// Part of the time since the last call that was not idle.
    pub(crate) fn used(&mut self) -> Option<f64> {
        self.used_in(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn used_in(&mut self, text: &str) -> Option<f64> {
        let line = text.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = line.split_whitespace().take(8).filter_map(|field| field.parse().ok()).collect();
        let [user, nice, system, idle, waiting, interrupts, soft, stolen] = ticks[..] else { return None };
        let busy = user + nice + system + interrupts + soft + stolen;
        let now = CpuTime { busy, all: busy + idle + waiting };
        let (busy, all) = (now.busy.saturating_sub(self.busy), now.all.saturating_sub(self.all));
        let is_first = self.all == 0;
        *self = now;
        let all = u32::try_from(all).ok().filter(|all| *all > 0 && !is_first)?;
        Some(f64::from(u32::try_from(busy).ok()?) / f64::from(all))
    }
}

/// How full the accept queue of a listening TCP socket is; the fullest, if several listen there. `None`: nobody listens.
///
/// # Errors
/// The kernel cannot be asked.
pub(crate) fn accept_queue(endpoint: SocketAddr) -> std::io::Result<Option<f64>> {
    let mut fullest: Option<f64> = None;
    for family in [AF_INET, AF_INET6] {
        for (address, port, waiting, backlog) in listeners(family)? {
            let is_any = address.is_unspecified() || address.to_canonical() == endpoint.ip().to_canonical();
            if port == endpoint.port() && is_any {
                let part = f64::from(waiting) / f64::from(backlog.max(1));
                fullest = Some(fullest.unwrap_or(0.0).max(part.min(1.0)));
            }
        }
    }
    Ok(fullest)
}

/// Address, port, connections that wait, and backlog of every listening TCP socket.
fn listeners(family: u8) -> std::io::Result<Vec<(IpAddr, u16, u32, u32)>> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::LISTEN,
        socket_id: if family == constants::AF_INET { SocketId::new_v4() } else { SocketId::new_v6() },
    });
    let mut message = NetlinkMessage::new(header, request.into());
    message.finalize();
    let mut bytes = vec![0; message.header.length as usize];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut found = Vec::new();
    loop {
        let (received, _) = socket.recv_from_full()?;
        let mut rest = &received[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<SockDiagMessage>::deserialize(rest)
                .map_err(|error| std::io::Error::other(error.to_string()))?;
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(found),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    let id = &response.header.socket_id;
                    let queues = (response.header.recv_queue, response.header.send_queue);
                    found.push((id.source_address, id.source_port, queues.0, queues.1));
                }
                _ => {}
            }
            let length = (message.header.length as usize).next_multiple_of(4).max(16);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        let text = "some avg10=12.50 avg60=1.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n";
        assert_eq!(pressure_in(text), Some(0.125));
        let mut cpu = CpuTime::default();
        assert_eq!(cpu.used_in("cpu  10 0 10 70 10 0 0 0 0 0\n"), None);
        assert_eq!(cpu.used_in("cpu  30 0 20 130 20 0 0 0 0 0\n"), Some(0.3));
        assert_eq!(cpu.used_in("nonsense"), None);
    }

    #[test]
    fn waiting_connections_are_seen() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        assert_eq!(accept_queue(address).unwrap(), Some(0.0));
        let waiting: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(address).unwrap()).collect();
        let part = accept_queue(address).unwrap().unwrap();
        assert!(part > 0.0 && part < 0.5, "{part}");
        drop((waiting, listener));
        assert_eq!(accept_queue(address).unwrap(), None);
    }
}
