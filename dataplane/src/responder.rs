//! Answers that the dataplane itself gives: sans-IO, from a frame into a caller's buffer.
