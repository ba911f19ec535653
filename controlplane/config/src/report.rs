//! What is wrong with a configuration: problems with their place, as text for people and as data for programs.

/// All problems of one file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {}
