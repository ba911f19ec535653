//! What validation has to know of the machine the unit is to run on.

use std::fs;

/// The machine, as far as a configuration can be at odds with it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Machine {
    /// Its CPUs' numbers; `None`: not known, so nothing is said about CPUs.
    pub cpus: Option<Vec<usize>>,
    /// Its memory; `None`: not known, so nothing is said about memory.
    pub memory: Option<Memory>,
}

/// A machine's memory, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// What of it is reserved as huge pages of any size, and nothing else can have.
    pub huge: u64,
}

impl Machine {
    /// This machine: its online CPUs and its memory, if the kernel tells.
    #[must_use]
    pub fn this() -> Self {
        let total = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
        Self {
            cpus: fs::read_to_string("/sys/devices/system/cpu/online").ok().and_then(|text| cpu_list(text.trim())),
            memory: total.map(|total| Memory { total, huge: huge_pages() }),
        }
    }
}

/// `MemTotal` of the kernel's list.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The bytes of all huge pages that are reserved, of each size that the kernel has.
fn huge_pages() -> u64 {
    let sizes = fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let reserved = sizes.filter_map(|entry| {
        let name = entry.file_name();
        let kibibytes = name.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse::<u64>().ok()?;
        let pages = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse::<u64>().ok()?;
        Some(kibibytes.saturating_mul(1024).saturating_mul(pages))
    });
    reserved.sum()
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
    fn the_kernels_memory_is_read() {
        assert_eq!(total("MemTotal:       24576000 kB\nMemFree:  1 kB\n"), Some(24_576_000 << 10));
        assert_eq!(total("MemFree: 1 kB"), None);
        let this = Machine::this().memory.unwrap();
        assert!(this.total > this.huge, "{this:?}");
    }

    #[test]
    fn the_kernels_list_is_read() {
        assert_eq!(cpu_list("0-2,8"), Some(vec![0, 1, 2, 8]));
        assert_eq!(cpu_list("0"), Some(vec![0]));
        assert_eq!(cpu_list(""), None);
    }
}
