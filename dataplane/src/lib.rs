//! Placeholder of dataplane.
