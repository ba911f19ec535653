//! DPDK's numbers that are macros which bindgen cannot evaluate; a test compares each with what C makes of its name.

macro_rules! values {
    ($($name:ident = $value:expr;)+) => {
        $(pub(crate) const $name: u64 = $value;)+

        /// All of them, by name.
        #[cfg(test)]
        const ALL: &[(&std::ffi::CStr, u64)] = &[$((
            match std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => panic!(),
            },
            $name,
        )),+];
    };
}

values! {
    RTE_ETH_RSS_NONFRAG_IPV4_TCP = 1 << 4;
    RTE_ETH_RSS_NONFRAG_IPV4_UDP = 1 << 5;
    RTE_ETH_RSS_NONFRAG_IPV6_TCP = 1 << 10;
    RTE_ETH_RSS_NONFRAG_IPV6_UDP = 1 << 11;
    RTE_ETH_RSS_IP = 1 << 2 | 1 << 3 | 1 << 7 | 1 << 8 | 1 << 9 | 1 << 13 | 1 << 15;
    RTE_ETH_RSS_TCP = RTE_ETH_RSS_NONFRAG_IPV4_TCP | RTE_ETH_RSS_NONFRAG_IPV6_TCP | 1 << 16;
    RTE_ETH_RSS_UDP = RTE_ETH_RSS_NONFRAG_IPV4_UDP | RTE_ETH_RSS_NONFRAG_IPV6_UDP | 1 << 17;
    RTE_ETH_RSS_L3_SRC_ONLY = 1 << 63;
    RTE_ETH_RSS_L3_DST_ONLY = 1 << 62;
    RTE_ETH_RSS_L4_SRC_ONLY = 1 << 61;
    RTE_ETH_RSS_L4_DST_ONLY = 1 << 60;
    RTE_ETH_LINK_SPEED_10M = 1 << 2;
    RTE_ETH_LINK_SPEED_100M = 1 << 4;
    RTE_ETH_LINK_SPEED_1G = 1 << 5;
    RTE_ETH_LINK_SPEED_2_5G = 1 << 6;
    RTE_ETH_LINK_SPEED_5G = 1 << 7;
    RTE_ETH_LINK_SPEED_10G = 1 << 8;
    RTE_ETH_LINK_SPEED_20G = 1 << 9;
    RTE_ETH_LINK_SPEED_25G = 1 << 10;
    RTE_ETH_LINK_SPEED_40G = 1 << 11;
    RTE_ETH_LINK_SPEED_50G = 1 << 12;
    RTE_ETH_LINK_SPEED_56G = 1 << 13;
    RTE_ETH_LINK_SPEED_100G = 1 << 14;
    RTE_ETH_LINK_SPEED_200G = 1 << 15;
    RTE_ETH_DEV_NOLIVE_MAC_ADDR = 1 << 5;
}

/// The fastest of a device's speeds (`speed_capa`), in megabits a second; `None` if it does not say.
pub(crate) fn fastest(speeds: u32) -> Option<u32> {
    SPEEDS.iter().rev().find(|(bit, _)| u64::from(speeds) & bit != 0).map(|(_, mbps)| *mbps)
}

const SPEEDS: [(u64, u32); 13] = [
    (RTE_ETH_LINK_SPEED_10M, 10),
    (RTE_ETH_LINK_SPEED_100M, 100),
    (RTE_ETH_LINK_SPEED_1G, 1_000),
    (RTE_ETH_LINK_SPEED_2_5G, 2_500),
    (RTE_ETH_LINK_SPEED_5G, 5_000),
    (RTE_ETH_LINK_SPEED_10G, 10_000),
    (RTE_ETH_LINK_SPEED_20G, 20_000),
    (RTE_ETH_LINK_SPEED_25G, 25_000),
    (RTE_ETH_LINK_SPEED_40G, 40_000),
    (RTE_ETH_LINK_SPEED_50G, 50_000),
    (RTE_ETH_LINK_SPEED_56G, 56_000),
    (RTE_ETH_LINK_SPEED_100G, 100_000),
    (RTE_ETH_LINK_SPEED_200G, 200_000),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_those_of_dpdks_headers() {
        for (name, value) in ALL {
            let mut there = 0;
            // SAFETY: a NUL-terminated name and a place for its value.
            let known = unsafe { weir_dpdk_sys::shim_value(name.as_ptr(), &raw mut there) };
            assert!(known, "the shim does not know {name:?}");
            assert_eq!(*value, there, "{name:?}");
        }
    }

    #[test]
    fn a_device_is_as_fast_as_its_fastest_speed() {
        assert_eq!(fastest(1 << 5 | 1 << 10 | 1 << 8), Some(25_000));
        assert_eq!(fastest(0), None);
    }
}
