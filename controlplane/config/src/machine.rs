//! What validation has to know of the machine the unit is to run on.

use std::fs;

/// The machine, as far as a configuration can be at odds with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    /// Its CPUs' numbers; `None`: not known, so nothing is said about CPUs.
    pub cpus: Option<Vec<usize>>,
}

impl Machine {
    /// This machine: its online CPUs, if the kernel tells.
    #[must_use]
    pub fn this() -> Self {
        Self { cpus: fs::read_to_string("/sys/devices/system/cpu/online").ok().and_then(|text| cpu_list(text.trim())) }
    }
}

/// Parses the kernel's list format, as in `0-3,8`.
fn cpu_list(text: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        cpus.extend(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?);
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_list_is_read() {
        assert_eq!(cpu_list("0-2,8"), Some(vec![0, 1, 2, 8]));
        assert_eq!(cpu_list("0"), Some(vec![0]));
        assert_eq!(cpu_list(""), None);
    }
}
