//! Placeholder of netlink.
