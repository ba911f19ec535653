//! How an operator names a port (`af_packet:eth1`), and the virtual devices that DPDK makes of it.

use std::fmt;
use std::str::FromStr;

use rustix::net::{AddressFamily, SocketType, netdevice, socket};

/// A port's device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Device {
    /// A kernel interface through packet sockets, shared with the kernel: `af_packet:IFACE`.
    AfPacket(String),
    /// A kernel interface through XDP sockets, taken from the kernel: `af_xdp:IFACE`.
    AfXdp(String),
    /// An interface that DPDK makes, whose other end the kernel has: `tap:IFACE`.
    Tap(String),
    /// A PCI device that DPDK drives itself: `0000:03:00.0`.
    Pci(String),
    /// Any other virtual device in DPDK's words: `net_ring0`, `net_pcap0,rx_pcap=in.pcap`.
    Vdev(Vdev),
}

/// A virtual device, as [`crate::Eal::add_vdev`] makes it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Vdev {
    /// The driver's name with a suffix that makes it unique: `net_af_packet0`.
    pub name: String,
    /// The driver's arguments, by commas.
    pub args: String,
    /// The receive and transmit queues that it has.
    pub queues: u16,
}

/// Why a device is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Not one of the forms that there are.
    #[error(
        "{0:?} is no device: af_packet:IFACE, af_xdp:IFACE, tap:IFACE, a PCI address (0000:03:00.0), or a DPDK vdev (net_...)"
    )]
    Unknown(String),
    /// The kernel's names have 1 to 15 bytes, without blanks, slashes and colons; DPDK's arguments know no commas in them.
    #[error("{0:?} cannot be an interface's name")]
    InterfaceName(String),
    /// The kernel has no such interface, in this network namespace.
    #[error("there is no interface {0}")]
    NoInterface(String),
    /// At least one queue is needed.
    #[error("{device} cannot have {queues} queues")]
    Queues {
        /// The device.
        device: String,
        /// What was asked for.
        queues: u16,
    },
}

impl Device {
    /// The kernel interface that has to be there, if any.
    #[must_use]
    pub fn interface(&self) -> Option<&str> {
        match self {
            Device::AfPacket(interface) | Device::AfXdp(interface) => Some(interface),
            Device::Tap(_) | Device::Pci(_) | Device::Vdev(_) => None,
        }
    }

    /// Looks for the kernel interface in the calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NoInterface`].
    pub fn check(&self) -> Result<(), DeviceError> {
        let Some(interface) = self.interface() else { return Ok(()) };
        let absent = |_| DeviceError::NoInterface(interface.to_owned());
        let any = socket(AddressFamily::INET, SocketType::DGRAM, None).map_err(absent)?;
        netdevice::name_to_index(&any, interface).map(|_| ()).map_err(absent)
    }

    /// The virtual devices that give this port `queues` queues for frames of `mtu`. `index` is the port's number in the process, for
    /// unique names. One af_xdp port is a device per queue; a PCI port is none. A vdev string is taken as it is, with the queues
    /// one says it has.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Queues`] for none, or for more than the 16 that a TAP can have; not whether the interface exists
    /// ([`Device::check`]).
    pub fn vdevs(&self, index: usize, queues: u16, mtu: u16) -> Result<Vec<Vdev>, DeviceError> {
        if queues == 0 || (queues > 16 && matches!(self, Device::Tap(_))) {
            return Err(DeviceError::Queues { device: self.to_string(), queues });
        }
        Ok(match self {
            Device::AfPacket(interface) => {
                let frame = frame_size(mtu);
                // A power of two that keeps each of the two rings of a queue at about 8 MiB: a full ring makes the kernel hand
                // packets to other queues.
                let count = ((8 << 20) / frame).next_power_of_two().clamp(512, 4096);
                let block = frame * FRAMES_PER_BLOCK;
                let args = format!(
                    "iface={interface},qpairs={queues},framesz={frame},framecnt={count},blocksz={block},qdisc_bypass=1"
                );
                vec![Vdev { name: format!("net_af_packet{index}"), args, queues }]
            }
            // A veth has no channels to divide, so that a device with several queues fails there; one device a queue does not.
            Device::AfXdp(interface) => (0..queues)
                .map(|queue| Vdev {
                    name: format!("net_af_xdp{index}q{queue}"),
                    args: format!("iface={interface},start_queue={queue},queue_count=1"),
                    queues: 1,
                })
                .collect(),
            Device::Tap(interface) => {
                vec![Vdev { name: format!("net_tap{index}"), args: format!("iface={interface}"), queues }]
            }
            Device::Pci(_) => Vec::new(),
            Device::Vdev(vdev) => vec![Vdev { queues, ..vdev.clone() }],
        })
    }
}

/// The bytes that af_packet sets aside for a frame: its headers (66, as TPACKET_V2 aligns them), Ethernet with two VLAN tags, and
/// the payload. In whole KiB, so that frames fill blocks and blocks fill pages.
fn frame_size(mtu: u16) -> usize {
    (usize::from(mtu) + 66 + 22).next_multiple_of(1024).max(2048)
}

const FRAMES_PER_BLOCK: usize = 4;

impl Vdev {
    /// Reads `name,arguments`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let (name, args) = text.split_once(',').unwrap_or((text, ""));
        Self { name: name.to_owned(), args: args.to_owned(), queues: 1 }
    }
}

impl fmt::Display for Vdev {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if self.args.is_empty() { Ok(()) } else { write!(f, ",{}", self.args) }
    }
}

impl FromStr for Device {
    type Err = DeviceError;

    fn from_str(text: &str) -> Result<Self, DeviceError> {
        let unknown = || DeviceError::Unknown(text.to_owned());
        if is_pci(text) {
            return Ok(Device::Pci(text.to_ascii_lowercase()));
        }
        if text.starts_with("net_") {
            let vdev = Vdev::parse(text);
            let name_is_plain = vdev.name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            let args_are_text = vdev.args.bytes().all(|byte| byte.is_ascii_graphic());
            return if name_is_plain && args_are_text { Ok(Device::Vdev(vdev)) } else { Err(unknown()) };
        }
        let (kind, interface) = text.split_once(':').ok_or_else(unknown)?;
        let make = match kind {
            "af_packet" => Device::AfPacket,
            "af_xdp" => Device::AfXdp,
            "tap" => Device::Tap,
            _ => return Err(unknown()),
        };
        let plain = interface.bytes().all(|byte| byte.is_ascii_graphic() && !b"/:,=[]".contains(&byte));
        if !plain || !(1..=15).contains(&interface.len()) || interface == "." || interface == ".." {
            return Err(DeviceError::InterfaceName(interface.to_owned()));
        }
        Ok(make(interface.to_owned()))
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::AfPacket(interface) => write!(f, "af_packet:{interface}"),
            Device::AfXdp(interface) => write!(f, "af_xdp:{interface}"),
            Device::Tap(interface) => write!(f, "tap:{interface}"),
            Device::Pci(address) => f.write_str(address),
            Device::Vdev(vdev) => vdev.fmt(f),
        }
    }
}

/// `DDDD:BB:DD.F` in hexadecimal.
fn is_pci(text: &str) -> bool {
    text.len() == 12
        && text.bytes().enumerate().all(|(at, byte)| match at {
            4 | 7 => byte == b':',
            10 => byte == b'.',
            11 => (b'0'..=b'7').contains(&byte),
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn device(text: &str) -> Device {
        text.parse().unwrap()
    }

    #[test]
    fn forms() {
        assert_eq!(device("af_packet:weir0"), Device::AfPacket("weir0".to_owned()));
        assert_eq!(device("af_xdp:eth1.7"), Device::AfXdp("eth1.7".to_owned()));
        assert_eq!(device("tap:twin0"), Device::Tap("twin0".to_owned()));
        assert_eq!(device("0000:0A:00.1"), Device::Pci("0000:0a:00.1".to_owned()));
        let pcap = Vdev { name: "net_pcap0".to_owned(), args: "rx_pcap=a.pcap,tx_pcap=b.pcap".to_owned(), queues: 1 };
        assert_eq!(device("net_pcap0,rx_pcap=a.pcap,tx_pcap=b.pcap"), Device::Vdev(pcap));
        for bad in [
            "",
            "eth0",
            "af_packet:",
            "af_packet:a,b",
            "af_packet:0123456789abcdef",
            "tap:a/b",
            "0000:03:00.8",
            "net_ring0 x",
        ] {
            assert!(bad.parse::<Device>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn af_packet_frames_hold_the_mtu_and_fill_their_blocks() {
        for mtu in [68_u16, 1500, 1959, 1960, 1961, 9000, 9216] {
            let args = &device("af_packet:a").vdevs(0, 2, mtu).unwrap()[0].args;
            let number = |key: &str| {
                let value = args.split(',').find_map(|arg| arg.strip_prefix(key)).unwrap();
                value.strip_prefix('=').unwrap().parse::<usize>().unwrap()
            };
            let (frame, block, count) = (number("framesz"), number("blocksz"), number("framecnt"));
            assert!(frame >= usize::from(mtu) + 88, "{args}");
            assert!(block % 4096 == 0 && block % frame == 0 && count % (block / frame) == 0, "{args}");
            assert_eq!(number("qpairs"), 2);
        }
    }

    #[test]
    fn an_af_xdp_port_is_a_device_per_queue() {
        let vdevs = device("af_xdp:dl0").vdevs(3, 2, 1500).unwrap();
        assert_eq!(vdevs[1].to_string(), "net_af_xdp3q1,iface=dl0,start_queue=1,queue_count=1");
        assert!(device("af_xdp:dl0").vdevs(0, 0, 1500).is_err());
    }

    #[test]
    fn a_missing_interface_is_named() {
        assert_eq!(device("af_packet:no-such-if").check(), Err(DeviceError::NoInterface("no-such-if".to_owned())));
        assert_eq!(device("af_packet:lo").check(), Ok(()));
        assert_eq!(device("tap:no-such-if").check(), Ok(()));
    }

    proptest! {
        #[test]
        fn what_parses_prints_the_same(text in "(af_packet:|af_xdp:|tap:|net_|0000:0)?[ -~]{0,16}") {
            if let Ok(device) = text.parse::<Device>() {
                prop_assert_eq!(device.to_string().parse::<Device>().unwrap(), device);
            }
        }
    }
}
