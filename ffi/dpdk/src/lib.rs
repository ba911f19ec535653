//! Placeholder of dpdk.
