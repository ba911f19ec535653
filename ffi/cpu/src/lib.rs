//! Placeholder of cpu.
