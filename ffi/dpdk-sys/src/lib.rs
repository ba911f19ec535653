//! Placeholder of dpdk-sys.
