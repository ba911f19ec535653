//! Placeholder of config.
