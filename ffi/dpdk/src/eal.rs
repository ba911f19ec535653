//! EAL, DPDK's process-wide foundation: started once, never stopped.

use std::ffi::{CStr, CString, OsStr, c_char, c_int};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;

use parking_lot::Mutex;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use weir_dpdk_sys as sys;

use crate::device::Vdev;
use crate::errno::Errno;
use crate::{log, sockets};

/// Proof that EAL runs. It lasts as long as the process, so the handle is free to copy.
#[derive(Debug, Clone, Copy)]
pub struct Eal {
    _started: (),
}

/// How EAL starts.
#[derive(Debug, Clone)]
pub struct EalOptions {
    /// What logs call the program.
    pub program: String,
    /// Names the run-time directory (`/run/dpdk/PREFIX`): unique per running process on the machine.
    pub file_prefix: String,
    /// Where packet memory comes from.
    pub memory: MemoryMode,
    /// Virtual devices to make at start, each `name,arguments`.
    pub vdevs: Vec<String>,
    /// PCI devices that DPDK may take (addresses such as `0000:03:00.0`). None: the PCI bus is not even looked at.
    pub pci_allow: Vec<String>,
    /// The CPUs of EAL's main thread; empty: those of the caller.
    pub cpus: Vec<usize>,
    /// What is logged.
    pub log_level: LogLevel,
    /// Where it is logged to, line by line; called from any thread.
    pub log: fn(&str),
    /// Whether `dpdk-telemetry.py` can attach (a thread and a socket).
    pub telemetry: bool,
}

impl Default for EalOptions {
    fn default() -> Self {
        Self {
            program: "dpdk".to_owned(),
            file_prefix: format!("dpdk-{}", std::process::id()),
            memory: MemoryMode::NoHuge { mib: 256 },
            vdevs: Vec::new(),
            pci_allow: Vec::new(),
            cpus: Vec::new(),
            log_level: LogLevel::Error,
            log: |text| eprint!("{text}"),
            telemetry: false,
        }
    }
}

/// Where packet memory comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryMode {
    /// Reserved huge pages. `in_memory` needs no hugetlbfs mount and leaves no files; without it there has to be a mount, and
    /// DPDK's other tools can map the memory too.
    Huge {
        /// Whether to use anonymous memory rather than files.
        in_memory: bool,
    },
    /// Ordinary pages, reserved at start: works for everybody everywhere, for virtual devices only.
    NoHuge {
        /// All of EAL's memory, in MiB; see [`crate::PoolConfig::bytes`].
        mib: u32,
    },
}

/// What is logged: this and everything graver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// What stops the program.
    Critical = 3,
    /// What fails.
    Error = 4,
    /// What may surprise.
    Warning = 5,
    /// What an operator may want to know.
    Notice = 6,
    /// What happens.
    Info = 7,
    /// Everything.
    Debug = 8,
}

/// Why EAL or a device did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EalError {
    /// EAL starts once a process. Nothing changed.
    #[error("EAL already runs in this process")]
    AlreadyRunning,
    /// An option that cannot be passed on. Nothing changed.
    #[error("{option} cannot be {value:?}")]
    Option {
        /// The option's name.
        option: &'static str,
        /// What it was.
        value: String,
    },
    /// Huge pages were asked for and none is reserved. Nothing changed; another memory mode may be tried.
    #[error("no huge pages are reserved: write a number to /proc/sys/vm/nr_hugepages, or run without huge pages")]
    NoHugepages,
    /// EAL's initialisation failed; whether it can be tried again depends on how far it came.
    #[error("EAL did not start: {errno}; {advice}\n{log}")]
    Start {
        /// DPDK's error.
        errno: Errno,
        /// What may help.
        advice: &'static str,
        /// What EAL said.
        log: String,
    },
    /// EAL runs, but this device could not be made; earlier ones exist.
    #[error("no device {name} from {args:?}: {errno}; {advice}\n{log}")]
    Vdev {
        /// The device's name.
        name: String,
        /// Its arguments.
        args: String,
        /// DPDK's error.
        errno: Errno,
        /// What may help.
        advice: &'static str,
        /// What the driver said.
        log: String,
    },
}

/// The process's EAL, and the lock under which it starts.
static RUNNING: Mutex<Option<Eal>> = Mutex::new(None);

/// Everything that makes, configures or removes devices runs under this lock: DPDK's control calls are not thread-safe.
pub(crate) static CONTROL: Mutex<()> = Mutex::new(());

impl Eal {
    /// Starts EAL and makes the virtual devices. The calling thread becomes EAL's main thread, on the CPUs that it had before.
    ///
    /// # Errors
    ///
    /// [`EalError`]. After [`EalError::Vdev`] EAL runs: [`Eal::running`] has it.
    pub fn init(options: &EalOptions) -> Result<Self, EalError> {
        let mut running = RUNNING.lock();
        if running.is_some() {
            return Err(EalError::AlreadyRunning);
        }
        if matches!(options.memory, MemoryMode::Huge { .. }) && reserved_hugepages() == 0 {
            return Err(EalError::NoHugepages);
        }
        let affinity = sched_getaffinity(None).ok();
        let argv = arguments(options, affinity.as_ref())?;
        log::open(options.log).map_err(|errno| EalError::Start {
            errno,
            advice: "out of memory",
            log: String::new(),
        })?;
        let argc = c_int::try_from(argv.len()).unwrap_or(c_int::MAX);
        // EAL keeps pointers into its arguments, and reorders them: they live for ever.
        let argv: &'static mut [*mut c_char] = argv.into_iter().map(CString::into_raw).collect::<Vec<_>>().leak();
        // SAFETY: `argv` has `argc` NUL-terminated strings, writable and never freed; the lock keeps a second call out.
        let (code, log) = log::quoting(|| unsafe { sys::rte_eal_init(argc, argv.as_mut_ptr()) });
        // EAL has bound this thread to its main lcore's CPUs; a thread started later would inherit that.
        if let Some(affinity) = affinity {
            let _ = sched_setaffinity(None, &affinity);
        }
        if code < 0 {
            let errno = Errno::last();
            return Err(EalError::Start { errno, advice: start_advice(errno, options, &log), log });
        }
        remove_empty_runtime_directory();
        let eal = Self { _started: () };
        *running = Some(eal);
        drop(running);
        for vdev in &options.vdevs {
            eal.add_vdev(&Vdev::parse(vdev))?;
        }
        Ok(eal)
    }

    /// The process's EAL, if it runs.
    #[must_use]
    pub fn running() -> Option<Self> {
        *RUNNING.lock()
    }

    /// Makes a virtual device; [`crate::IdlePort::by_name`] then finds its port. A driver that opens an interface does so in the
    /// calling thread's network namespace.
    ///
    /// # Errors
    ///
    /// [`EalError::Vdev`] with what the driver said; nothing is left of the device.
    pub fn add_vdev(self, vdev: &Vdev) -> Result<(), EalError> {
        let option = |value: &str| {
            CString::new(value)
                .map_err(|_| EalError::Option { option: "a device's name or arguments", value: value.to_owned() })
        };
        let (name, args) = (option(&vdev.name)?, option(&vdev.args)?);
        let _control = CONTROL.lock();
        let before = sockets::packet_sockets();
        let (code, log) = log::quoting(|| {
            // SAFETY: EAL runs; three NUL-terminated strings that the call copies; the lock keeps other control calls out.
            Errno::check(unsafe { sys::rte_eal_hotplug_add(c"vdev".as_ptr(), name.as_ptr(), args.as_ptr()) })
        });
        code.map_err(|errno| EalError::Vdev {
            name: vdev.name.clone(),
            args: vdev.args.clone(),
            errno,
            advice: vdev_advice(vdev, errno),
            log,
        })?;
        sockets::remember(&vdev.name, &before);
        Ok(())
    }

    /// Makes the calling thread known to EAL until the guard is dropped, so that it gets a cache of its own in every pool. The
    /// thread that started EAL is known anyway.
    ///
    /// # Errors
    ///
    /// EAL knows as many threads as it can (128), or runs with secondary processes.
    pub fn register_thread(self) -> Result<RegisteredThread, Errno> {
        // SAFETY: both calls only concern the calling thread.
        let registered = unsafe { sys::shim_lcore_id() } == u32::MAX;
        if registered {
            // SAFETY: as above.
            Errno::check(unsafe { sys::rte_thread_register() })?;
        }
        Ok(RegisteredThread { registered, _here: PhantomData })
    }
}

/// Keeps the thread that made it known to EAL; see [`Eal::register_thread`].
#[derive(Debug)]
pub struct RegisteredThread {
    registered: bool,
    /// It has to be dropped on its own thread.
    _here: PhantomData<*const ()>,
}

impl Drop for RegisteredThread {
    fn drop(&mut self) {
        if self.registered {
            // SAFETY: this thread registered itself and has not been unregistered since: the guard cannot leave the thread.
            unsafe { sys::rte_thread_unregister() };
        }
    }
}

/// EAL's command line.
fn arguments(options: &EalOptions, affinity: Option<&CpuSet>) -> Result<Vec<CString>, EalError> {
    let mut cpus = options.cpus.clone();
    if cpus.is_empty() {
        cpus = (0..CpuSet::MAX_CPU).filter(|&cpu| affinity.is_some_and(|set| set.is_set(cpu))).collect();
    }
    let cpus = cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    let mut words = vec![
        ("program", options.program.clone()),
        ("file_prefix", format!("--file-prefix={}", options.file_prefix)),
        ("log_level", format!("--log-level={}", options.log_level as u8)),
    ];
    if options.file_prefix.is_empty() || options.file_prefix.contains('/') {
        return Err(EalError::Option { option: "file_prefix", value: options.file_prefix.clone() });
    }
    // One lcore that floats over all its CPUs: this crate's users make their own threads.
    words.push(("cpus", format!("--lcores=0@({})", if cpus.is_empty() { "0" } else { &cpus })));
    match options.memory {
        MemoryMode::Huge { in_memory: true } => words.push(("memory", "--in-memory".to_owned())),
        MemoryMode::Huge { in_memory: false } => {}
        MemoryMode::NoHuge { mib } => {
            words.extend(["--no-huge", "--no-shconf"].map(|word| ("memory", word.to_owned())));
            words.push(("memory", format!("-m{mib}")));
        }
    }
    if options.pci_allow.is_empty() {
        // Or EAL would take the machine's own network card. Nothing does DMA then, so that no physical addresses are needed.
        words.extend(["--no-pci", "--iova-mode=va"].map(|word| ("pci_allow", word.to_owned())));
    }
    words.extend(options.pci_allow.iter().map(|address| ("pci_allow", format!("--allow={address}"))));
    if !options.telemetry {
        words.push(("telemetry", "--no-telemetry".to_owned()));
    }
    words
        .into_iter()
        .map(|(option, value)| CString::new(value.clone()).map_err(|_| EalError::Option { option, value }))
        .collect()
}

/// How many huge pages of any size the kernel has reserved.
#[must_use]
pub fn reserved_hugepages() -> u64 {
    let sizes = std::fs::read_dir("/sys/kernel/mm/hugepages").into_iter().flatten().flatten();
    let counts = sizes.filter_map(|size| std::fs::read_to_string(size.path().join("nr_hugepages")).ok());
    counts.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
}

/// EAL makes a directory for what processes share. Where nothing is shared it stays empty, and would outlive every process.
fn remove_empty_runtime_directory() {
    // SAFETY: EAL runs; it returns a NUL-terminated string in its own memory, which is read before the call ends.
    let directory = unsafe { CStr::from_ptr(sys::rte_eal_get_runtime_dir()) };
    let _ = std::fs::remove_dir(OsStr::from_bytes(directory.to_bytes()));
}

fn start_advice(errno: Errno, options: &EalOptions, log: &str) -> &'static str {
    let says = |text: &str| log.to_ascii_lowercase().contains(text);
    match (errno, options.memory) {
        (Errno(EACCES | EPERM), _) => "it needs more rights: run as root",
        (_, MemoryMode::Huge { in_memory: false }) if says("hugetlbfs") || says("hugepage") => {
            "mount a hugetlbfs, or use in_memory"
        }
        (_, MemoryMode::Huge { .. }) if says("memory") || says("hugepage") => {
            "reserve more huge pages (/proc/sys/vm/nr_hugepages)"
        }
        (_, MemoryMode::NoHuge { .. }) if says("memory") => "not enough memory, or a limit on it (ulimit -v, cgroup)",
        _ if says("config") || says("lock") => "another process runs with the same file prefix",
        _ => "its log says why",
    }
}

fn vdev_advice(vdev: &Vdev, errno: Errno) -> &'static str {
    match errno {
        Errno(EEXIST) => "a device of this name exists",
        Errno(EPERM | EACCES) => "it needs CAP_NET_RAW and CAP_NET_ADMIN: run as root",
        _ if vdev.args.contains("iface=") => {
            "is the interface there, in this network namespace, and may this process open it?"
        }
        _ => "its log says why; a driver of this name has to be installed",
    }
}

const EPERM: i32 = 1;
const EACCES: i32 = 13;
const EEXIST: i32 = 17;

#[cfg(test)]
mod tests {
    use super::*;

    fn words(options: &EalOptions) -> Vec<String> {
        arguments(options, None).unwrap().into_iter().map(|word| word.into_string().unwrap()).collect()
    }

    #[test]
    fn pci_is_off_unless_asked_for() {
        assert!(words(&EalOptions::default()).contains(&"--no-pci".to_owned()));
        let pci = EalOptions { pci_allow: vec!["0000:03:00.0".to_owned()], ..EalOptions::default() };
        assert!(words(&pci).contains(&"--allow=0000:03:00.0".to_owned()));
        assert!(!words(&pci).contains(&"--no-pci".to_owned()));
    }

    #[test]
    fn memory_modes() {
        let mode = |memory| words(&EalOptions { memory, ..EalOptions::default() });
        assert!(mode(MemoryMode::NoHuge { mib: 64 }).contains(&"-m64".to_owned()));
        assert!(mode(MemoryMode::Huge { in_memory: true }).contains(&"--in-memory".to_owned()));
        assert!(!mode(MemoryMode::NoHuge { mib: 64 }).contains(&"--in-memory".to_owned()), "EAL refuses both at once");
    }

    #[test]
    fn bad_options_are_refused() {
        for file_prefix in ["", "a/b", "a\0b"] {
            let options = EalOptions { file_prefix: file_prefix.to_owned(), ..EalOptions::default() };
            assert!(
                matches!(arguments(&options, None), Err(EalError::Option { option: "file_prefix", .. })),
                "{file_prefix:?}"
            );
        }
    }
}
