//! Placeholder of probes.
