//! Placeholder of admin.
