//! Placeholder of health_load.
